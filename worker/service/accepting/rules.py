"""The rules of one request that need no images: its words, seeds, LoRAs, scheduler, output and counts."""

import json
import re
import secrets
from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.interface import sampling
from worker.catalog.interface.parameters import needed_fields, prompt_parameter, takes_negative_prompt
from worker.catalog.interface.prompt_encoding import mixes_prompts, prompt_form
from worker.core.adapter import ControlNetSpec
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.job import SchedulerChoice
from worker.core.json_text import parse_bounded
from worker.core.model import LoraSpec, ModelSpec, Task
from worker.core.prompt import holds_weights
from worker.core.prompt_mixing import changes, is_mixed
from worker.core.prompt_syntax import MIXING, unread_marks
from worker.core.request import IMAGE_FORMATS, MAX_SEED, VIDEO_FORMATS, GenerationRequest, OutputOptions

# Seeds larger than a JavaScript number would come back changed.
_RANDOM_SEED_BITS = 48


def choose_task(request: GenerationRequest, model: Model, sent: tuple[str, ...]) -> Task:
    """Return the task asked for, or inferred from the sent fields. Raises InvalidRequest if the model lacks it."""
    inferred = Task.INPAINTING if request.outpaint is not None else model.infer_task(sent)
    task = request.task or inferred
    if model.tasks and task not in model.tasks:
        untaken = [call.media_faults(sent).untaken for call in model.calls]
        foreign = [name for name in sent if all(name in names for names in untaken)]
        field = next(iter(foreign or [name for name in sent if name != "image"]), "image")
        evidence = "" if request.task else f" ({'an' if field[0] in 'aeiou' else 'a'} {field} was sent)"
        raise InvalidRequest(
            f"task {task}{evidence} is not one of {model.spec.id}, which serves {', '.join(model.tasks)}.",
            field="task" if request.task else field,
        )
    return task


def read_prompts(request: GenerationRequest, call: ModelCall) -> tuple[str, str | None]:
    """Return prompt and negative prompt. Raises InvalidRequest if one is missing, broken or not read by the model."""
    spec, reads_negative = call.spec, takes_negative_prompt(call)
    if request.prompt is None and "prompt" in needed_fields(call):
        raise InvalidRequest(f"prompt is required for {call.task}: say in words what to draw.", field="prompt")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None and ("\0" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text)):
            raise InvalidRequest(f"{name} holds a NUL or half a surrogate pair; send valid UTF-8 text.", field=name)
    # An empty one says nothing to a model that reads none.
    if request.negative_prompt and request.negative_prompt.strip() and not reads_negative:
        raise UnknownParameter(
            f"negative_prompt is not taken by {spec.id}; leave it out, or say in prompt what you want instead.",
            field="negative_prompt",
        )
    default = spec.defaults.get("negative_prompt") if reads_negative else None
    negative = request.negative_prompt if request.negative_prompt is not None else default
    return request.prompt or "", negative if isinstance(negative, str) else None


def prompt_in_its_form(prompt: str, call: ModelCall) -> tuple[str, tuple[str, ...]]:
    """Return the prompt as its class reads it, and a note if plain words became JSON for it."""
    key = call.row.json_prompt
    if not key or _holds(prompt, key):
        return prompt, ()
    note = f'prompt was sent as {{"{key}": …}}: {call.spec.id} reads JSON, and more of it says more.'
    return json.dumps({key: prompt}, ensure_ascii=False), (note,)


def _holds(text: str, key: str) -> bool:
    try:
        value = parse_bounded(text)
    except ValueError:
        return False
    return isinstance(value, dict) and key in value


def second_prompt(
    negative: str | None, params: Mapping[str, JsonValue], call: ModelCall
) -> tuple[str | None, tuple[str, ...]]:
    """Return the negative prompt of a class with true guidance, and a warning if it does nothing.

    Such a class guides by two prompts or not at all: without a negative one it ignores `true_cfg_scale` silently
    (diffusers 0.42.1). So an empty one is sent, as the authors of Qwen-Image do.
    """
    if call.signature is None or not call.takes("true_cfg_scale", "negative_prompt"):
        return negative, ()
    scale = params.get("true_cfg_scale", call.signature["true_cfg_scale"].default)
    guided = isinstance(scale, int | float) and scale > 1
    if guided and negative is None:
        return " ", ()
    if negative and negative.strip() and not guided:
        return negative, (f"negative_prompt changes nothing at true_cfg_scale {scale}; send one above 1.",)
    return negative, ()


def uses_lightning(request: GenerationRequest, spec: ModelSpec) -> bool:
    """True if the model has a distillation LoRA of its own, and the request or else the operator has it used."""
    if spec.lightning is None:
        return False
    return spec.lightning.by_default if request.lightning is None else request.lightning


def check_lightning(request: GenerationRequest, spec: ModelSpec) -> None:
    """Raise UnknownParameter if a distillation LoRA is asked for and the model has none."""
    if request.lightning and spec.lightning is None:
        raise UnknownParameter(
            f"lightning is not a field of {spec.id}, which has no Lightning LoRA in models.yaml; leave it out.",
            field="lightning",
        )


def all_loras(request: GenerationRequest, call: ModelCall) -> tuple[LoraSpec, ...]:
    """Return the model's own LoRAs, then the request's."""
    spec, loras = call.spec, call.spec.loras
    if call.lightning and spec.lightning is not None:
        loras += (LoraSpec(model=spec.lightning.lora, weight=spec.lightning.weight),)
    return loras + request.adapters_of(LoraSpec)


def take_scheduler(
    params: Mapping[str, JsonValue], raw: Mapping[str, JsonValue], call: ModelCall
) -> tuple[dict[str, JsonValue], SchedulerChoice | None]:
    """Split `params` into those without sampling fields, and the chosen scheduler. Raises ParameterOutOfRange."""
    fields = sampling.said_of(params, raw)
    rest = {name: value for name, value in params.items() if name not in sampling.FIELDS}
    return rest, sampling.choose(fields, rest, sampling.fit_of(call), call.spec.id)


def choose_seeds(request: GenerationRequest) -> tuple[int, ...]:
    """Return one seed for each image, counting up from the one asked for or a random one."""
    first = request.seed if request.seed is not None else secrets.randbits(_RANDOM_SEED_BITS)
    # Counting past the end goes on at 0, so that the last seeds of the range can be used too.
    return tuple((first + index) % (MAX_SEED + 1) for index in range(request.num_images))


def check_output(output: OutputOptions, call: ModelCall) -> None:
    """Raise ParameterOutOfRange for a format that is not for the call's output."""
    formats = VIDEO_FORMATS if call.makes_video else IMAGE_FORMATS
    if output.format is not None and output.format not in formats:
        noun = "videos" if call.makes_video else "images"
        raise ParameterOutOfRange(
            f"output.format of {call.task} must be one of {', '.join(formats)}; {output.format} is not for {noun}.",
            field="output",
        )


def notes_on(request: GenerationRequest, call: ModelCall) -> tuple[str, ...]:
    """Return warnings for a prompt, or weights in it, that this model does not read."""
    spec, prompt = call.spec, request.prompt or ""
    if prompt.strip() and prompt_parameter(call) is None:
        return (f"{spec.id} reads no prompt; what was sent changes nothing.",)
    notes = [
        f"{spec.id} reads {name} as prose: the weights and BREAK in it are characters to it."
        for name, text in (("prompt", prompt), ("negative_prompt", request.negative_prompt or ""))
        if prompt_form(call) is None and holds_weights(text, explicit=True)
    ]
    return (*notes, *_unread(request, call), *_unknown_subject(prompt, spec))


def reads_mixtures(request: GenerationRequest, call: ModelCall) -> bool:
    """True if prompts that change from step to step, or are composed by AND, are read for this request."""
    plain = request.refiner is None and request.params.get("prompt_weighting") != "none"
    return plain and mixes_prompts(call) and not request.adapters_of(ControlNetSpec)


def _unread(request: GenerationRequest, call: ModelCall) -> tuple[str, ...]:
    """Return a warning for each mark of another program in a prompt that is not read."""
    mixed = reads_mixtures(request, call)
    read = {"prompt": is_mixed, "negative_prompt": changes} if mixed else {}
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    texts |= {name: text for name, text in request.params.items() if "prompt" in name and isinstance(text, str)}
    return tuple(
        f"{name}: {mark} is not read here and stays in the prompt as words; {instead}."
        for name, text in texts.items()
        for mark, instead in unread_marks(text or "")
        if not (mark in MIXING and name in read and read[name](text or "")) or (mark == "AND" and name != "prompt")
    )


def _unknown_subject(prompt: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return a warning for a prompt that names nothing a small model knows; large models have no such list."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', prompt.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in spec.subjects]
    if not names or not prompt.strip() or any(f" {name} " in words or f" {name}s " in words for name in names):
        return ()
    examples = ", ".join(spec.subjects[:: max(1, len(spec.subjects) // 6)][:6])
    return (f"{spec.id} knows {len(names)} names of things ({examples} …), and the prompt has none of them.",)
