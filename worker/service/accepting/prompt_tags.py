"""Adapters that a prompt names, as other programs' users write them: `<lora:add_detail:0.8>` becomes one of `loras`."""

import math
from collections.abc import Callable

from worker.core.adapter import HypernetworkSpec
from worker.core.errors import ParameterOutOfRange
from worker.core.model import AdapterSpec, LoraSpec
from worker.core.prompt_syntax import Tag, TagKind, take_tags
from worker.core.request import GenerationRequest

_FIELDS: dict[TagKind, str] = {"lora": "loras", "hypernet": "hypernetworks"}
_TITLES: dict[TagKind, str] = {"lora": "LoRA", "hypernet": "hypernetwork"}
_LIMIT = 10.0

# Returns the reference of an adapter that the operator has under this name; None for one that nobody here knows.
Find = Callable[[TagKind, str], str | None]


def read_tags(request: GenerationRequest, find: Find) -> tuple[GenerationRequest, tuple[str, ...]]:
    """Return `request` with the adapters that its prompt names, and a warning for each tag that could not be read.

    The tags are taken out of the prompts: to no text encoder are they words. Raises ParameterOutOfRange for a weight
    that no adapter may have.
    """
    if request.params.get("prompt_weighting") == "none":
        return request, ()
    prompt, tags = take_tags(request.prompt or "")
    negative, others = take_tags(request.negative_prompt or "")
    if not tags and not others:
        return request, ()
    adapters: list[AdapterSpec] = []
    notes = [
        f"negative_prompt: {tag.text} was left out; name it in prompt or in {_FIELDS[tag.kind]}." for tag in others
    ]
    for tag in tags:
        reference = find(tag.kind, tag.name)
        if reference is None:
            notes.append(
                f"prompt: {tag.text} was left out, since this worker has no {_TITLES[tag.kind]} of that name; send "
                f"its reference in {_FIELDS[tag.kind]}."
            )
            continue
        weight, ignored = _weight(tag)
        if ignored:
            notes.append(f"prompt: of {tag.text} only the weight {weight:g} was read, and not {', '.join(ignored)}.")
        if tag.kind == "lora":
            adapters.append(LoraSpec(model=reference, weight=weight))
        else:
            adapters.append(HypernetworkSpec(model=reference, weight=weight))
    changed: dict[str, object] = {"adapters": (*request.adapters, *adapters)}
    changed |= {"prompt": prompt} if tags else {}
    changed |= {"negative_prompt": negative or None} if others else {}
    return request.model_copy(update=changed), tuple(notes)


def _weight(tag: Tag) -> tuple[float, list[str]]:
    """Return a tag's weight, 1 where it says none, and what else it says that means nothing here.

    With two numbers the second is the denoiser's and the first the text encoder's, as AUTOMATIC1111's web UI has it.
    """
    numbers, others = [], []
    for text in tag.settings:
        try:
            numbers.append(float(text.removeprefix("unet=")))
        except ValueError:
            others += [text] if text else []
    if any(not math.isfinite(number) or abs(number) > _LIMIT for number in numbers):
        raise ParameterOutOfRange(
            f"prompt: the weight in {tag.text} must be between -{_LIMIT:g} and {_LIMIT:g}.", field="prompt"
        )
    weight = numbers[1] if len(numbers) > 1 else numbers[0] if numbers else 1.0
    if len(numbers) > 1 and numbers[0] != weight:
        others.insert(0, f"{numbers[0]:g} for the text encoder")
    return weight, others
