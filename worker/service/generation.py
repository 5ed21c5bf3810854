"""From a request to a job, and from a job to its result: a generation is accepted before anything is loaded."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace

from pydantic import JsonValue

from worker.catalog.calls.checking import check_parameters
from worker.catalog.calls.refusals import refusal
from worker.catalog.calls.sizes import default_fps, frames_within, image_limit, is_strict_on_frames
from worker.catalog.calls.tasks import draws_video, pipeline_for
from worker.catalog.schedulers import scheduler_names
from worker.core.errors import (
    AccessDenied,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    ParameterOutOfRange,
    SourceError,
    UnsupportedModel,
    WorkerError,
)
from worker.core.job import Job, StopSignal
from worker.core.model import Detection, ModelSpec, Task
from worker.core.ports import Backend
from worker.core.request import GenerationRequest
from worker.core.result import Emit, JobResult
from worker.service.acceptance import (
    all_loras,
    check_output,
    choose_seeds,
    choose_task,
    notes_on,
    read_prompts,
    take_scheduler,
    uses_lightning,
)
from worker.service.fallback import replacements
from worker.service.inputs import Inputs, check_fields, read_inputs, sent_fields, without_media
from worker.service.jobs import JobLedger
from worker.service.resolving import ModelResolver


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
            try:
                return await self._attempt(request, job_id, emit)
            except WorkerError as error:
                for other in replacements(request, error, self._resolver):
                    # A stand-in that fails too leaves the first failure to tell: that is of what was asked for.
                    with suppress(InvalidRequest, SourceError, AccessDenied, LoadFailed, OutOfMemory):
                        result = await self._attempt(other.request, job_id, emit)
                        return replace(result, warnings=(other.warning, *result.warnings))
                raise

        return await self._ledger.once(job_id, request, run)

    async def _attempt(self, request: GenerationRequest, job_id: str, emit: Emit) -> JobResult:
        return await self._backend.generate(await self.accept(request, job_id), emit)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check everything that can be checked without weights. Raises InvalidRequest and its kin, naming the field."""
        return await asyncio.to_thread(self._accept, request, job_id)

    def _accept(self, request: GenerationRequest, job_id: str) -> Job:
        spec = self._resolver.resolve(request.model)
        self._check_counts(request, spec)
        detection = self._resolver.detect(spec)
        sent = sent_fields(request, spec, detection)
        task = choose_task(request, spec, detection, sent)
        pipeline = _pipeline(spec, detection, task)
        check_fields(spec, detection, task, sent)
        video = draws_video(pipeline, task)
        check_output(request.output, task, video=video)
        lightning = uses_lightning(request, spec)
        raw = without_media(request.params, sent)
        scheduler = take_scheduler(raw, spec, detection)
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
        prompt, negative_prompt = read_prompts(request, spec, detection, task)
        inputs = read_inputs(request, sent, spec, detection, task, params, self._fetch)
        params, warnings = _on_the_frame_grid(inputs.params, pipeline)
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
            seeds=choose_seeds(request),
            media=inputs.media,
            loras=all_loras(request, spec, lightning),
            lightning=lightning,
            output=request.output.model_copy(update={"format": request.output.format_of(video=video)}),
            warnings=notes_on(request, spec, pipeline) + warnings,
            stop=StopSignal(min(request.timeout_s or self._limits.timeout_s, self._limits.timeout_s)),
            fps=_fps(inputs, params, spec, detection, pipeline) if video else None,
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


def _pipeline(spec: ModelSpec, detection: Detection, task: Task) -> str:
    pipeline = pipeline_for(spec, detection, task)
    if pipeline is None:
        raise UnsupportedModel(f"{spec.id} has no pipeline for {task}; name another model.", field="model")
    reason = refusal(pipeline)
    if reason is not None:
        raise UnsupportedModel(f"{spec.id} is a {pipeline}, which {reason}.", field="model")
    return pipeline


def _on_the_frame_grid(params: dict[str, JsonValue], pipeline: str) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """`num_frames` as the class will draw it: its VAE makes one of several frames."""
    asked = params.get("num_frames")
    if not isinstance(asked, int) or not is_strict_on_frames(pipeline):
        return params, ()
    count = frames_within(pipeline, asked)
    if count == asked:
        return params, ()
    return params | {"num_frames": count}, (f"num_frames {asked} was lowered to {count}, which the model can draw.",)


def _fps(inputs: Inputs, params: dict[str, JsonValue], spec: ModelSpec, detection: Detection, pipeline: str) -> float:
    """Frames a second of the video that comes back: as asked for, else as sent, else the family's."""
    asked = params.get("fps", params.get("frame_rate"))
    if isinstance(asked, int | float) and asked > 0:
        return float(asked)
    sent = inputs.fps if inputs.fps is not None and 1 <= inputs.fps <= 60 else None
    return sent or default_fps(spec, detection, pipeline)
