"""The rules of one request that need no pictures: its words, seeds, LoRAs, scheduler, output and counts."""

import re
import secrets
from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.classes.signatures import call_parameters
from worker.catalog.classes.tasks import media_faults
from worker.catalog.interface import sampling
from worker.catalog.interface.parameters import needed_fields, prompt_parameter, takes_negative_prompt
from worker.catalog.interface.tasks import infer_task, pipeline_for, tasks_of
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.job import SchedulerChoice
from worker.core.model import Detection, LoraSpec, ModelSpec, Task
from worker.core.prompt import PromptForm, holds_weights
from worker.core.request import MAX_SEED, PICTURE_FORMATS, VIDEO_FORMATS, GenerationRequest, OutputOptions

# Larger than a JavaScript number would come back changed.
_RANDOM_SEED_BITS = 48


def choose_task(request: GenerationRequest, spec: ModelSpec, detection: Detection, sent: tuple[str, ...]) -> Task:
    """The task asked for, or meant by what was sent. Raises InvalidRequest for one that the model does not have."""
    known = tasks_of(spec, detection)
    meant = Task.INPAINTING if request.outpaint is not None else infer_task(spec, detection, sent)
    task = request.task or meant
    if known and task not in known:
        faults = [media_faults(pipeline_for(spec, detection, other), other, sent) for other in known]
        strange = [name for name in sent if all(name in found.untaken for found in faults)]
        named = next(iter(strange or [name for name in sent if name != "image"]), "image")
        said = "" if request.task else f" ({'an' if named[0] in 'aeiou' else 'a'} {named} was sent)"
        raise InvalidRequest(
            f"task {task}{said} is not one of {spec.id}, which serves {', '.join(known)}.",
            field="task" if request.task else named,
        )
    return task


def read_prompts(
    request: GenerationRequest, spec: ModelSpec, detection: Detection, task: Task
) -> tuple[str, str | None]:
    """Prompt and negative prompt. Raises InvalidRequest where one is missing, broken or not read by the model."""
    if request.prompt is None and "prompt" in needed_fields(spec, detection, task):
        raise InvalidRequest(f"prompt is required for {task}: say in words what to draw.", field="prompt")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None and ("\0" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text)):
            raise InvalidRequest(f"{name} holds a NUL or half a surrogate pair; send valid UTF-8 text.", field=name)
    if request.negative_prompt is not None and not takes_negative_prompt(spec, detection, task):
        raise UnknownParameter(
            f"negative_prompt is not taken by {spec.id}; leave it out, or say in prompt what you want instead.",
            field="negative_prompt",
        )
    default = spec.defaults.get("negative_prompt") if takes_negative_prompt(spec, detection, task) else None
    negative = request.negative_prompt if request.negative_prompt is not None else default
    return request.prompt or "", negative if isinstance(negative, str) else None


def second_prompt(
    negative: str | None, params: Mapping[str, JsonValue], pipeline: str
) -> tuple[str | None, tuple[str, ...]]:
    """The negative prompt of a class with true guidance, and a word where it does nothing.

    Such a class guides by two prompts or not at all: without a negative one it ignores `true_cfg_scale` silently
    (diffusers 0.42.1), so an empty one is sent, as the authors of Qwen-Image do.
    """
    signature = call_parameters(pipeline) or {}
    if not {"true_cfg_scale", "negative_prompt"} <= signature.keys():
        return negative, ()
    scale = params.get("true_cfg_scale", signature["true_cfg_scale"].default)
    guided = isinstance(scale, int | float) and scale > 1
    if guided and negative is None:
        return " ", ()
    if negative and negative.strip() and not guided:
        return negative, (f"negative_prompt changes nothing at true_cfg_scale {scale}; send one above 1.",)
    return negative, ()


def uses_lightning(request: GenerationRequest, spec: ModelSpec) -> bool:
    """Whether the model's own distillation LoRA is used. Raises UnknownParameter where there is none."""
    if request.lightning and spec.lightning is None:
        raise UnknownParameter(
            f"lightning is not a field of {spec.id}, which has no Lightning LoRA in models.yaml; leave it out.",
            field="lightning",
        )
    return spec.lightning is not None and request.lightning is not False


def all_loras(request: GenerationRequest, spec: ModelSpec, lightning: bool) -> tuple[LoraSpec, ...]:
    """The model's own LoRAs, then the request's."""
    own = spec.loras
    if lightning and spec.lightning is not None:
        own += (LoraSpec(model=spec.lightning.lora, weight=spec.lightning.weight),)
    return own + request.loras


def take_scheduler(
    params: Mapping[str, JsonValue], raw: Mapping[str, JsonValue], spec: ModelSpec, detection: Detection, task: Task
) -> tuple[dict[str, JsonValue], SchedulerChoice | None]:
    """`params` without the sampling fields, and what those choose. Raises ParameterOutOfRange for what does not fit."""
    said = sampling.said_of(params, raw)
    rest = {name: value for name, value in params.items() if name not in sampling.FIELDS}
    return rest, sampling.choose(said, rest, sampling.fit_of(spec, detection, task), spec.id)


def choose_seeds(request: GenerationRequest) -> tuple[int, ...]:
    """One seed for each picture, counting up from the one asked for or a random one."""
    first = request.seed if request.seed is not None else secrets.randbits(_RANDOM_SEED_BITS)
    # Counting past the end goes on at 0, so that the last seeds of the range can be used too.
    return tuple((first + index) % (MAX_SEED + 1) for index in range(request.num_images))


def check_output(output: OutputOptions, task: Task, *, video: bool) -> None:
    """Raise ParameterOutOfRange for a format that what comes back cannot have."""
    formats = VIDEO_FORMATS if video else PICTURE_FORMATS
    if output.format is not None and output.format not in formats:
        what = "videos" if video else "pictures"
        raise ParameterOutOfRange(
            f"output.format of {task} must be one of {', '.join(formats)}; {output.format} is not for {what}.",
            field="output",
        )


def notes_on(request: GenerationRequest, spec: ModelSpec, pipeline: str, words: PromptForm | None) -> tuple[str, ...]:
    """Kind words for a prompt that does nothing here, or whose weights do."""
    prompt = request.prompt or ""
    if prompt.strip() and prompt_parameter(pipeline) is None:
        return (f"{spec.id} reads no prompt; what was sent changes nothing.",)
    unread = [
        f"{spec.id} reads {name} as prose: the weights and BREAK in it are characters to it."
        for name, text in (("prompt", prompt), ("negative_prompt", request.negative_prompt or ""))
        if words is None and holds_weights(text, explicit=True)
    ]
    return (*unread, *_unknown_subject(prompt, spec))


def _unknown_subject(prompt: str, spec: ModelSpec) -> tuple[str, ...]:
    """A kind word for a prompt that names nothing a small model knows; large models know no such list."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', prompt.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in spec.subjects]
    if not names or not prompt.strip() or any(f" {name} " in words or f" {name}s " in words for name in names):
        return ()
    some = ", ".join(spec.subjects[:: max(1, len(spec.subjects) // 6)][:6])
    return (f"{spec.id} knows {len(names)} names of things ({some} …), and the prompt has none of them.",)
