"""From a request to a job, and from a job to its result: a generation is accepted before anything is loaded."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from pydantic import JsonValue

from worker.catalog.classes.refusals import refusal
from worker.catalog.classes.signatures import redraws_by_strength
from worker.catalog.classes.tasks import draws_video
from worker.catalog.interface.checking import check_parameters
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.catalog.interface.sizes import FRAME_COUNTS, default_fps, image_limit
from worker.catalog.interface.tasks import pipeline_for
from worker.catalog.pipelines.table import pipeline_row
from worker.core.adapter import Adapter, Control, VaeSpec
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
from worker.core.finishing import Finishing
from worker.core.job import Job, StopSignal, VideoRequest
from worker.core.model import Detection, ModelSpec, Task
from worker.core.ports import Backend
from worker.core.request import GenerationRequest
from worker.core.result import Emit, JobResult, Progress
from worker.service.accepting.adapters.controls import idle_controls, read_controls, recognise_controls
from worker.service.accepting.adapters.fields import check_adapter_fields
from worker.service.accepting.adapters.image_prompts import read_image_prompts
from worker.service.accepting.fallback import replacements
from worker.service.accepting.finishing import check_upscaling, find_refiner, find_upscaler
from worker.service.accepting.inputs import (
    Budget,
    Inputs,
    check_fields,
    check_outpaint,
    read_inputs,
    sent_fields,
    without_media,
)
from worker.service.accepting.resolving import ModelResolver
from worker.service.accepting.rules import (
    all_loras,
    check_output,
    choose_seeds,
    choose_task,
    notes_on,
    read_prompts,
    second_prompt,
    take_scheduler,
    uses_lightning,
)
from worker.service.jobs.idempotency import JobLedger
from worker.service.limits.admission import Admission
from worker.service.limits.job_limits import JobLimits
from worker.service.limits.quotas import Quotas, Reservation
from worker.service.usage.telemetry import accepted


class GenerationService:
    """Accepts requests and has them drawn, each job once."""

    def __init__(
        self,
        resolver: ModelResolver,
        backend: Backend,
        ledger: JobLedger,
        limits: JobLimits,
        fetch: Callable[[str, int], bytes],
        admission: Admission,
        quotas: Quotas,
        aliases: Collection[str] = (),
    ) -> None:
        self._resolver = resolver
        self._backend = backend
        self._ledger = ledger
        self._limits = limits
        self._fetch = fetch
        self.admission = admission
        self._quotas = quotas
        self._aliases = aliases

    async def generate(
        self, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None
    ) -> JobResult:
        """Accept and run one job. A second delivery of the same id and request gets the first one's result.

        `caller` is whoever a door knows to have sent it, for his quotas.
        """

        async def run() -> JobResult:
            self.check_open(caller)  # before anything is read or fetched for it
            with self._quotas.reserve(caller) as reservation:
                return await self._run(request, job_id, emit, reservation)

        return await self._ledger.once(job_id, request, run)

    def check_open(self, caller: str | None) -> None:
        """Refuse what would be refused whatever it is. Raises Overloaded and its kin, ShuttingDown."""
        self.admission.check_open()
        self._quotas.check(caller)

    async def _run(self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation) -> JobResult:
        try:
            return await self._attempt(request, job_id, emit, reservation)
        except WorkerError as error:
            for other in replacements(request, error, self._resolver):
                # A stand-in that fails too leaves the first failure to tell: that is of what was asked for.
                with suppress(InvalidRequest, SourceError, AccessDenied, LoadFailed, OutOfMemory):
                    result = await self._attempt(other.request, job_id, emit, reservation)
                    return replace(result, warnings=(other.warning, *result.warnings))
            raise

    async def _attempt(
        self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation
    ) -> JobResult:
        def told(progress: Progress) -> None:
            reservation.note(progress)
            emit(progress)

        job = await self.accept(request, job_id)
        accepted(job)
        work = self.admission.check_work(job)
        self.admission.check_open()  # it may have filled up meanwhile; and who is turned away pays nothing
        self._quotas.charge(reservation, work)
        async with self.admission.admitted(job):
            return await self._backend.generate(job, told)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check everything that can be checked without weights. Raises InvalidRequest and its kin, naming the field."""
        return await asyncio.to_thread(self._accept, request, job_id)

    def _accept(self, request: GenerationRequest, job_id: str) -> Job:
        spec = self._resolver.resolve(request.model)
        self._check_counts(request, spec)
        detection = self._resolver.detect(spec)
        check_outpaint(request, spec, detection)
        sent = sent_fields(request, spec, detection)
        task = choose_task(request, spec, detection, sent)
        check_adapter_fields(request, spec, detection, task)
        control = recognise_controls(request, spec, detection, task, self._resolver)
        # With controls another class is called, and its parameters and pictures are the ones that count.
        called = control.called(spec, task) if control else spec
        drawn = called if control and control.acts else spec
        pipeline = _pipeline(drawn, detection, task)
        check_fields(drawn, detection, task, sent)
        video = draws_video(pipeline, task)
        check_output(request.output, task, video=video)
        lightning = uses_lightning(request, spec)
        raw = without_media(request.params, spec, detection)
        params = check_parameters(
            raw,
            called,
            detection,
            task,
            max_images=self._limits.max_images,
            aliases=self._aliases,
            lightning=lightning,
        )
        params, scheduler = take_scheduler(params, raw, called, detection, task)
        prompt, negative_prompt = read_prompts(request, called, detection, task)
        words = prompt_form(spec, detection, pipeline)
        budget = Budget()
        inputs = read_inputs(request, sent, drawn, detection, task, params, self._fetch, budget)
        image_prompts = read_image_prompts(request, pipeline, self._fetch, budget)
        params, frames = _on_the_frame_grid(inputs, pipeline)
        negative_prompt, unguided = second_prompt(negative_prompt, params, pipeline)
        check_upscaling(request, spec, detection, params, inputs.media)
        controls: tuple[Control, ...] = ()
        if control is not None:
            controls, params = read_controls(request, control, spec, detection, params, self._fetch, budget)
        return Job(
            id=job_id,
            request=request,
            spec=spec,
            detection=detection,
            task=task,
            pipeline=pipeline,
            row=pipeline_row(pipeline),
            prompt=prompt,
            negative_prompt=negative_prompt,
            params=params,
            scheduler=scheduler,
            seeds=choose_seeds(request),
            media=inputs.media,
            adapters=(
                *map(Adapter, all_loras(request, spec, lightning)),
                *controls,
                *image_prompts,
                *map(Adapter, request.embeddings),
                *map(Adapter, request.hypernetworks),
                *((Adapter(VaeSpec(model=request.vae)),) if request.vae else ()),
            ),
            finishing=Finishing(
                find_refiner(request, spec, detection, pipeline, params, self._resolver),
                find_upscaler(request, params, self._resolver),
            ),
            lightning=lightning,
            output=request.output.model_copy(update={"format": request.output.format_of(video=video)}),
            words=words,
            warnings=notes_on(request, spec, pipeline, words) + unguided + idle_controls(request),
            stop=StopSignal(self._limits.seconds_for(request, spec)),
            redraws=params.get("strength") != 0 or not redraws_by_strength(pipeline),
            video=VideoRequest(_fps(inputs, params, spec, detection, pipeline), frames) if video else None,
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


def _on_the_frame_grid(inputs: Inputs, pipeline: str) -> tuple[dict[str, JsonValue], int | None]:
    """The parameters with as many frames as the class can draw, and how many of these are wanted."""
    params = inputs.params
    row = pipeline_row(pipeline)
    if row.lengthens:
        return params, None
    name = next((name for name in FRAME_COUNTS if isinstance(params.get(name), int)), "")
    asked = params.get(name)
    if not isinstance(asked, int):
        return params, inputs.frames
    return params | {name: row.frame_grid.covering(asked)}, asked


def _fps(inputs: Inputs, params: dict[str, JsonValue], spec: ModelSpec, detection: Detection, pipeline: str) -> float:
    """Frames a second of the video that comes back: as asked for, else as sent, else the family's."""
    asked = params.get("fps", params.get("frame_rate"))
    if isinstance(asked, int | float) and asked > 0:
        return float(asked)
    sent = inputs.fps if inputs.fps is not None and 1 <= inputs.fps <= 60 else None
    return sent or default_fps(spec, detection, pipeline)
