"""From a request to a job, and from a job to its result: every rule of a generation, before anything is loaded."""

import asyncio
import difflib
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pydantic import JsonValue

from worker.catalog.schedulers import find_scheduler, scheduler_names
from worker.catalog.schema import (
    FROM_TEXT,
    check_parameters,
    image_limit,
    pipeline_for,
    size_bounds,
    takes_negative_prompt,
)
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter, UnsupportedModel
from worker.core.image import Raster
from worker.core.job import Job, SchedulerChoice, StopSignal
from worker.core.model import Detection, LoraSpec, ModelSpec, Task
from worker.core.ports import Backend
from worker.core.request import MAX_SEED, GenerationRequest
from worker.core.result import Emit, JobResult
from worker.media.images import fit, read_image
from worker.service.jobs import JobLedger
from worker.service.resolving import ModelResolver

# What the engine of this version can call; the tables know more.
SERVED_TASKS = frozenset({Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.IMAGE_EDITING})
# Larger than a JavaScript number would come back changed.
_RANDOM_SEED_BITS = 48


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may ask for at most."""

    max_images: int = 8
    max_loras: int = 8
    timeout_s: float = 600.0


class GenerationService:
    """Accepts requests and has them drawn, each job once."""

    def __init__(
        self,
        resolver: ModelResolver,
        backend: Backend,
        ledger: JobLedger,
        limits: Limits,
        fetch: Callable[[str, int], bytes],
        aliases: Collection[str] = (),
    ) -> None:
        self._resolver = resolver
        self._backend = backend
        self._ledger = ledger
        self._limits = limits
        self._fetch = fetch
        self._aliases = aliases

    async def generate(self, request: GenerationRequest, job_id: str, emit: Emit) -> JobResult:
        """Accept and run one job. A second delivery of the same id and request gets the first one's result."""

        async def run() -> JobResult:
            return await self._backend.generate(await self.accept(request, job_id), emit)

        return await self._ledger.once(job_id, request, run)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check everything that can be checked without weights. Raises InvalidRequest and its kin, naming the field."""
        return await asyncio.to_thread(self._accept, request, job_id)

    def _accept(self, request: GenerationRequest, job_id: str) -> Job:
        spec = self._resolver.resolve(request.model)
        self._check_counts(request, spec)
        detection = self._resolver.detect(spec)
        task = _task(request, spec, detection)
        pipeline = pipeline_for(spec, detection, task)
        if pipeline is None:
            raise UnsupportedModel(f"{spec.id} has no pipeline for {task}; name another model.", field="model")
        lightning = _lightning(request, spec)
        raw = dict(request.params)
        scheduler = _scheduler(raw, spec, detection)
        params = check_parameters(
            raw,
            spec,
            detection,
            task,
            max_images=self._limits.max_images,
            schedulers=scheduler_names(detection.architecture),
            aliases=self._aliases,
            lightning=lightning,
        )
        prompt, negative_prompt = _prompts(request, spec, detection, task)
        image = self._image(request, spec, task, bool(raw.keys() & {"width", "height"}), params, detection)
        return Job(
            id=job_id,
            request=request,
            spec=spec,
            detection=detection,
            task=task,
            pipeline=pipeline,
            prompt=prompt,
            negative_prompt=negative_prompt,
            params=params,
            scheduler=scheduler,
            seeds=_seeds(request),
            image=image,
            loras=_loras(request, spec, lightning),
            lightning=lightning,
            output=request.output,
            warnings=_unknown_subject(prompt, spec),
            stop=StopSignal(min(request.timeout_s or self._limits.timeout_s, self._limits.timeout_s)),
        )

    def _check_counts(self, request: GenerationRequest, spec: ModelSpec) -> None:
        limit = image_limit(spec, self._limits.max_images)
        if request.num_images > limit:
            raise ParameterOutOfRange(
                f"num_images must be between 1 and {limit}; {request.num_images} was sent.", field="num_images"
            )
        if len(request.loras) > self._limits.max_loras:
            raise ParameterOutOfRange(
                f"loras may hold at most {self._limits.max_loras} entries; {len(request.loras)} were sent.",
                field="loras",
            )

    def _image(
        self,
        request: GenerationRequest,
        spec: ModelSpec,
        task: Task,
        sized: bool,
        params: dict[str, JsonValue],
        detection: Detection,
    ) -> Raster | None:
        if task in FROM_TEXT:
            return None
        if request.image is None:
            raise InvalidRequest(
                f"image is required for {task}; send it as base64, data: URI or https URL.", field="image"
            )
        picture = read_image(request.image, self._fetch)
        if task is Task.IMAGE_EDITING and not sized:
            # These pipelines choose their own working size from the picture's.
            params.pop("width", None)
            params.pop("height", None)
            return picture
        width, height = params.get("width"), params.get("height")
        if not sized or not isinstance(width, int) or not isinstance(height, int):
            width, height = _size_like(picture, spec, detection)
        params["width"], params["height"] = width, height
        return fit(picture, width, height)


def _task(request: GenerationRequest, spec: ModelSpec, detection: Detection) -> Task:
    known = spec.tasks or detection.tasks
    if request.task is not None:
        task = request.task
    elif request.image is not None:
        task = next((item for item in known if item not in FROM_TEXT), Task.IMAGE_TO_IMAGE)
    else:
        task = known[0] if known else Task.TEXT_TO_IMAGE
    if known and task not in known:
        sent = "" if request.task else " (an image was sent)"
        raise InvalidRequest(
            f"task {task}{sent} is not one of {spec.id}, which serves {', '.join(known)}.",
            field="task" if request.task else "image",
        )
    if task not in SERVED_TASKS:
        raise UnsupportedModel(
            f"task {task} of {spec.id} is not served by this version of the worker, which serves "
            f"{', '.join(sorted(SERVED_TASKS))}.",
            field="task",
        )
    if task in FROM_TEXT and request.image is not None:
        raise InvalidRequest(f"image is not a field of {task}; leave it out or choose another task.", field="image")
    return task


def _prompts(request: GenerationRequest, spec: ModelSpec, detection: Detection, task: Task) -> tuple[str, str | None]:
    if request.prompt is None:
        raise InvalidRequest(f"prompt is required for {task}: say in words what to draw.", field="prompt")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None and ("\0" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text)):
            raise InvalidRequest(f"{name} holds a NUL or half a surrogate pair; send valid UTF-8 text.", field=name)
    if request.negative_prompt is not None and not takes_negative_prompt(spec, detection):
        raise UnknownParameter(
            f"negative_prompt is not taken by {spec.id}; leave it out, or say in prompt what you want instead.",
            field="negative_prompt",
        )
    default = spec.defaults.get("negative_prompt")
    negative = request.negative_prompt if request.negative_prompt is not None else default
    return request.prompt, negative if isinstance(negative, str) else None


def _lightning(request: GenerationRequest, spec: ModelSpec) -> bool:
    if request.lightning and spec.lightning is None:
        raise UnknownParameter(
            f"lightning is not a field of {spec.id}, which has no Lightning LoRA in models.yaml; leave it out.",
            field="lightning",
        )
    return spec.lightning is not None and request.lightning is not False


def _loras(request: GenerationRequest, spec: ModelSpec, lightning: bool) -> tuple[LoraSpec, ...]:
    own = spec.loras
    if lightning and spec.lightning is not None:
        own += (LoraSpec(model=spec.lightning.lora, weight=spec.lightning.weight),)
    return own + request.loras


def _scheduler(raw: dict[str, JsonValue], spec: ModelSpec, detection: Detection) -> SchedulerChoice | None:
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


def _seeds(request: GenerationRequest) -> tuple[int, ...]:
    first = request.seed if request.seed is not None else secrets.randbits(_RANDOM_SEED_BITS)
    # Counting past the end goes on at 0, so that the last seeds of the range can be used too.
    return tuple((first + index) % (MAX_SEED + 1) for index in range(request.num_images))


def _size_like(picture: Raster, spec: ModelSpec, detection: Detection) -> tuple[int, int]:
    """The model's grid and pixel limit, at the picture's own proportions."""
    bounds = size_bounds(spec, detection)
    scale = min(1.0, (bounds.max_pixels / (picture.width * picture.height)) ** 0.5)
    scale = min(scale, bounds.maximum / max(picture.width, picture.height))
    width, height = bounds.nearest(picture.width * scale), bounds.nearest(picture.height * scale)
    while width * height > bounds.max_pixels:
        if width >= height:
            width -= bounds.multiple
        else:
            height -= bounds.multiple
    return width, height


def _unknown_subject(prompt: str, spec: ModelSpec) -> tuple[str, ...]:
    """A kind word for a prompt that names nothing a small model knows; large models know no such list."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', prompt.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in spec.subjects]
    if not names or not prompt.strip() or any(f" {name} " in words or f" {name}s " in words for name in names):
        return ()
    some = ", ".join(spec.subjects[:: max(1, len(spec.subjects) // 6)][:6])
    return (f"{spec.id} knows {len(names)} names of things ({some} …), and the prompt has none of them.",)
