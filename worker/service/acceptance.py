"""The rules of one request that need no pictures: its words, seeds, LoRAs, scheduler, output and counts."""

import difflib
import re
import secrets

from pydantic import JsonValue

from worker.catalog.calls.schema import needed_fields, prompt_parameter, takes_negative_prompt
from worker.catalog.calls.tasks import infer_task, tasks_of
from worker.catalog.schedulers import find_scheduler, scheduler_names
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.job import SchedulerChoice
from worker.core.model import Detection, LoraSpec, ModelSpec, Task
from worker.core.request import MAX_SEED, PICTURE_FORMATS, VIDEO_FORMATS, GenerationRequest, OutputOptions

# Larger than a JavaScript number would come back changed.
_RANDOM_SEED_BITS = 48


def choose_task(request: GenerationRequest, spec: ModelSpec, detection: Detection, sent: tuple[str, ...]) -> Task:
    """The task asked for, or meant by what was sent. Raises InvalidRequest for one that the model does not have."""
    known = tasks_of(spec, detection)
    task = request.task or infer_task(spec, detection, sent)
    if known and task not in known:
        named = next((name for name in sent if name != "image"), "image")
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


def take_scheduler(raw: dict[str, JsonValue], spec: ModelSpec, detection: Detection) -> SchedulerChoice | None:
    """Take `scheduler` out of `raw`, or the model's default, as a diffusers class."""
    name = raw.get("scheduler", spec.defaults.get("scheduler"))
    raw.pop("scheduler", None)
    if name is None:
        return None
    row = find_scheduler(name, detection.architecture) if isinstance(name, str) else None
    if row is None:
        names = scheduler_names(detection.architecture)
        near = difflib.get_close_matches(str(name)[:40].lower(), names, n=1)
        raise ParameterOutOfRange(
            f"scheduler {str(name)[:40]!r} is not known for {spec.id}; choose one of {', '.join(names)}.",
            field="scheduler",
            hint=f"Did you mean {near[0]}?" if near else None,
        )
    return row.choice


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


def notes_on(request: GenerationRequest, spec: ModelSpec, pipeline: str) -> tuple[str, ...]:
    """Kind words for a prompt that does nothing here."""
    prompt = request.prompt or ""
    if prompt.strip() and prompt_parameter(pipeline) is None:
        return (f"{spec.id} reads no prompt; what was sent changes nothing.",)
    return _unknown_subject(prompt, spec)


def _unknown_subject(prompt: str, spec: ModelSpec) -> tuple[str, ...]:
    """A kind word for a prompt that names nothing a small model knows; large models know no such list."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', prompt.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in spec.subjects]
    if not names or not prompt.strip() or any(f" {name} " in words or f" {name}s " in words for name in names):
        return ()
    some = ", ".join(spec.subjects[:: max(1, len(spec.subjects) // 6)][:6])
    return (f"{spec.id} knows {len(names)} names of things ({some} …), and the prompt has none of them.",)
