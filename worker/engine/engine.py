"""The engine: plan, lease, adapters, call; afterwards the pipeline is clean again, whatever happens."""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import DeviceLost, EngineFailure, JobCancelled, JobTimeout, OutOfMemory, WorkerError
from worker.core.finishing import Upscaler
from worker.core.image import Raster
from worker.core.job import Batch, Job, SchedulerChoice
from worker.core.model import Kind, ModelFiles, ModelSpec
from worker.core.quality import LeverReport
from worker.core.result import Artifact, Emit, EngineReport, Outcome, Progress
from worker.core.turn import StopSignal
from worker.engine import devices
from worker.engine.adapters.mixing import Mixable, Unmixable
from worker.engine.adapters.stack import AdapterStack
from worker.engine.call import call_pipeline
from worker.engine.classes import DTYPES
from worker.engine.compatibility import compatible
from worker.engine.complaints import complaint, texts_of
from worker.engine.components import held_bytes
from worker.engine.execution_device import device_known
from worker.engine.levers.gate import Gate
from worker.engine.levers.improving import improve
from worker.engine.levers.row import Lever
from worker.engine.loader import load_pipeline
from worker.engine.outputs import read_images
from worker.engine.plan import images_that_fit, make_plan, resident_key, resident_keys, target_dtype
from worker.engine.pool import PipelinePool
from worker.engine.profiling import profiled
from worker.engine.prompts import check_clip_skip, notes_on_prompts
from worker.engine.ram_tier import RamTier
from worker.engine.refining import begin_images, finish_images
from worker.engine.resident import Budget, Resident
from worker.engine.safety import SafetyChecker, SafetyPolicy
from worker.engine.schedulers import build_scheduler, check_schedule
from worker.engine.stepping import part_of
from worker.media.images import to_pil

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class DiffusersEngine:
    """An engine that runs batches on one device. Blocking, and used from one thread only."""

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        budget: Budget | None = None,
        safety: SafetyPolicy | None = None,
        gate: Gate | None = None,
    ) -> None:
        budget = budget or Budget()
        self._device = devices.choose_device(device)
        self._pool = PipelinePool(budget.models, RamTier(self._device, budget.waiting_bytes))
        self._adapters = AdapterStack(budget.loras, budget.merged_bytes)
        self._mixable = Mixable()
        self._safety = SafetyChecker(safety or SafetyPolicy(), self._device)
        self._gate = gate or Gate()
        self._load_s = 0.0

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        return self._pool.models

    def holds(self, batch: Batch) -> bool:
        """True if all models of a batch are on the device."""
        return all(self._pool.get(key) is not None for key in resident_keys(batch))

    def device_info(self, *, cards: bool = False) -> DeviceInfo:
        """Return the device's name and memory, as of now; with those of all GPUs of this process if asked."""
        return devices.probe_all(self._device) if cards else devices.probe(self._device)

    @property
    def levers(self) -> tuple[LeverReport, ...]:
        """What was decided of the levers for the models on the device."""
        return self._gate.reports(self._pool.residents)

    def run(self, batch: Batch, emit: Emit) -> EngineReport:
        """Generate for the first jobs of `batch`, as many as fit into one call, and report the outcome of each.

        Raises WorkerError only; afterwards the pipeline is as it was before.
        """
        try:
            report = profiled(self._run_batch, batch, emit)
        except EngineFailure as error:
            levers = self._gate.used
            if not levers or isinstance(error, OutOfMemory | DeviceLost):
                raise
            with self._gate.only(()):
                report = self._run_batch(batch, emit)
            self._gate.doubt(levers)
            return report
        self._gate.note(batch, report)
        return replace(report, standing=self._gate.key)

    def improve(self, stop: StopSignal, emit: Emit) -> bool:
        """Try one way to generate faster on a resident model; False where there is nothing to try.

        For times without a job. Raises JobCancelled at the next step once `stop` says so, and DeviceLost.
        """

        def draw(batch: Batch, levers: Sequence[Lever]) -> tuple[tuple[Raster, ...], float]:
            started, self._load_s = time.monotonic(), 0.0
            with self._gate.only(levers), torch.random.fork_rng(devices=[]):
                outcome = self._generate(batch, emit).outcomes[0]
            if isinstance(outcome, WorkerError):
                raise outcome
            return tuple(artifact.raster for artifact in outcome), time.monotonic() - started - self._load_s

        def reload(batch: Batch) -> Resident:
            with self._lease(batch.jobs[0], batch.jobs[0].call, batch.files, emit) as resident:
                return resident

        return improve(self._pool, self._gate, draw, reload, stop)

    def _run_batch(self, batch: Batch, emit: Emit) -> EngineReport:
        """Do what `run` says, with the levers that are chosen now."""
        job = batch.jobs[0]
        devices.reset_peak(self._device)
        started = time.monotonic()
        self._load_s = 0.0
        try:
            # Modules built for an adapter or an upscaler start with random weights.
            with torch.random.fork_rng(devices=[]):
                batch.check()
                if batch.finishing.safety_checker is not None:
                    self._safety.judge_of(batch.finishing.safety_checker)
                upscaler = job.finishing.upscaler
                report = self._generate(batch, emit if upscaler is None else part_of(emit, 0, 2))
                if upscaler is not None:
                    enlarged = self._upscaled(report.outcomes, upscaler, batch, part_of(emit, 1, 2))
                    report = replace(report, outcomes=enlarged)
                return replace(
                    self._checked(report, batch),
                    load_s=self._load_s,
                    inference_s=time.monotonic() - started - self._load_s,
                    peak_memory_gb=devices.peak_memory_gb(self._device),
                )
        except WorkerError as error:
            # A traceback holds the frames that hold the tensors: without it their memory is free.
            raise error.with_traceback(None) from None
        except BaseException as error:  # SystemExit too: a library may not end the worker
            # The library's own message helps the reader of the log; a caller's prompt has no place there.
            frames = "".join(traceback.format_tb(error.__traceback__))
            message = str(error)
            for prompt in filter(None, (each.prompt for each in batch.jobs)):
                message = message.replace(prompt, "[prompt]")
            jobs = ", ".join(each.id for each in batch.jobs)
            _LOG.error("job %s failed with %s: %s\n%s", jobs, type(error).__name__, message, frames)
            for key in resident_keys(batch):
                self._pool.discard(key)
            failure = devices.device_failure(
                error, complaint(error, (text for each in batch.jobs for text in texts_of(each)))
            )
        devices.release_memory()
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: a circle otherwise, and in it the batch's images

    def preload(self, model: KnownModel, files: ModelFiles, emit: Emit) -> LoadPlan:
        """Make a model resident. Raises LoadFailed, OutOfMemory …"""
        plan, is_upscaler = self._plan(model, files, megapixels=0.25), model.detection.kind is Kind.UPSCALER
        key = resident_key(model.spec, files)
        with self._pool.lease(key, lambda: self._load(model.spec, plan, emit), is_upscaler=is_upscaler) as resident:
            return resident.plan

    def unload(self, model: str) -> int:
        """Drop a model from the device; returns how many residents that were."""
        return self._pool.evict_model(model)

    def _generate(self, batch: Batch, emit: Emit) -> EngineReport:
        """Generate for jobs with different LoRAs in one call, or for the first that have the same."""
        if batch.own_loras and self._mixable.allows(batch):
            try:
                return self._generate_alike(batch, emit)
            except Unmixable as reason:
                self._mixable.note(batch, reason)
        return self._generate_alike(batch.alike(), emit)

    def _generate_alike(self, batch: Batch, emit: Emit) -> EngineReport:
        """Generate with the job's model, then with its refiner where it has one. Both are never leased at once."""
        job, refiner, files = batch.jobs[0], batch.jobs[0].finishing.refiner, batch.finishing.refiner
        beside = sum(item.bytes_beside for item in batch.all_adapters)
        with (
            self._lease(job, job.call, batch.files, emit, beside) as resident,
            self._gate.settled(resident, batch) as levers,
            self._adapters.applied(resident, batch, lambda: self._room(resident, batch)) as applied,
        ):
            pipe, extra = applied.pipe, applied.arguments
            check_clip_skip(pipe, job)
            notes = {
                each.id: applied.notes_for(each) + self._adapters.notes(batch, each) + notes_on_prompts(pipe, each)
                for each in batch.jobs
            }

            def call(at_once: int) -> tuple[Outcome, ...]:
                with levers.called(pipe):
                    return call_pipeline(pipe, batch, extra, emit, 1 if levers.alone else at_once, applied.mixture)

            done = replace(applied.report, notes=notes, levers=levers.names, weights=resident.plan.weights)
            if refiner is None or files is None or not job.generates:
                outcomes, warnings = self._run(pipe, resident, batch, call)
                return replace(done, outcomes=outcomes, warnings=warnings)
            first, last = part_of(emit, 0, 2), part_of(emit, 1, 2)

            def begin(_: int) -> Any:
                with levers.called(pipe):
                    return begin_images(pipe, batch, extra, refiner, first)

            begun, warnings = self._run(pipe, resident, batch, begin)
        with (
            _blamed_on("refiner"),
            self._lease(job, refiner.call, files, emit) as resident,
            self._gate.plain(resident),
            self._adapters.refining(resident, refiner.call.pipeline, batch) as second,
        ):
            artifacts, more = self._run(
                second, resident, batch, lambda _: finish_images(second, batch, begun, refiner, last)
            )
        return replace(done, outcomes=(artifacts,), warnings=tuple({*warnings, *more}))

    def _upscaled(
        self, outcomes: tuple[Outcome, ...], upscaler: Upscaler, batch: Batch, emit: Emit
    ) -> tuple[Outcome, ...]:
        """Enlarge every image of the batch with the upscaler that its jobs agree in."""
        files, spec = batch.finishing.upscaler, upscaler.spec
        count = sum(0 if isinstance(outcome, WorkerError) else len(outcome) for outcome in outcomes)
        if files is None or not count:
            return outcomes
        parts = (part_of(emit, index, count) for index in range(count))
        with _blamed_on("upscale"), self._lease(batch.jobs[0], upscaler.model, files, emit) as resident:

            def enlarged(artifact: Artifact) -> Artifact:
                emit_part = next(parts)

                def after_tile(pipe: Any, step: int, *_: Any) -> Any:
                    emit_part(Progress("inference", step + 1, pipe.num_timesteps, "upscaling"))
                    batch.check()
                    return {}

                image = to_pil(artifact.raster)
                output = resident.pipe(image, scale=spec.scale, tile=spec.tile, callback_on_step_end=after_tile)
                return replace(artifact, raster=read_images(output)[0])

            return tuple(
                outcome if isinstance(outcome, WorkerError) else tuple(map(enlarged, outcome)) for outcome in outcomes
            )

    def _checked(self, report: EngineReport, batch: Batch) -> EngineReport:
        """Return `report` with a verdict on every image; images that may not be shown are hidden."""
        files = batch.finishing.safety_checker
        if files is None:
            return report
        batch.check()
        outcomes, safety = [], {}
        for job, outcome in zip(batch.jobs, report.outcomes, strict=False):
            if not isinstance(outcome, WorkerError):
                outcome, safety[job.id] = self._safety.check(outcome, files)
            outcomes.append(outcome)
        return replace(report, outcomes=tuple(outcomes), safety=safety)

    @contextmanager
    def _lease(
        self, job: Job, model: KnownModel, files: ModelFiles, emit: Emit, beside_bytes: int = 0
    ) -> Iterator[Resident]:
        """Lease one of the job's models, loaded if need be."""
        started = time.monotonic()

        def load() -> Resident:
            # Evict first, then look at what is free.
            try:
                plan = self._plan(model, files, job.megapixels, beside_bytes)
            except OutOfMemory:  # with the other models beside it; a base and its refiner then replace each other
                self._pool.evict_unused()
                plan = self._plan(model, files, job.megapixels, beside_bytes)
            return self._load(model.spec, plan, emit)

        is_upscaler, key = model.detection.kind is Kind.UPSCALER, resident_key(model.spec, files)
        if self._pool.get(key) is None:
            self._adapters.release()
        with self._pool.lease(key, load, is_upscaler=is_upscaler) as resident:
            self._load_s += time.monotonic() - started
            yield resident

    def _plan(self, model: KnownModel, files: ModelFiles, megapixels: float, beside_bytes: int = 0) -> LoadPlan:
        device = self.device_info(cards=model.spec.device_map is not None)
        held = held_bytes(self._pool.shared, files, DTYPES[target_dtype(model.spec, device)], device.type)
        return make_plan(model, files, device, megapixels=megapixels, beside_bytes=beside_bytes, held_bytes=held)

    def _load(self, spec: ModelSpec, plan: LoadPlan, emit: Emit) -> Resident:
        emit(Progress("load", 0, 1, spec.id))
        with self._pool.shared.opened(plan):
            pipe = load_pipeline(plan)
        emit(Progress("load", 1, 1, spec.id))
        return Resident(spec.id, plan, pipe, getattr(pipe, "scheduler", None))

    def _room(self, resident: Resident, batch: Batch) -> int:
        """Return the bytes that the batch leaves free on the device, with a few of its images in one call."""
        images, plan = min(4, sum(len(job.seeds) for job in batch.jobs)), resident.plan
        working = int(plan.working_bytes_per_mp * batch.jobs[0].megapixels) * images
        return devices.least_free(self.device_info(cards=bool(plan.cards)), plan) - plan.reserve_bytes - working

    def _at_once(self, resident: Resident, batch: Batch) -> int:
        """Return how many images may go into one call.

        On a CPU the images of one job are drawn one by one: in a batch its kernels add in another order, and some image
        has a value that is one off, so that `seed + i` would not replay it. A batch gains little there: what a model
        computes takes as long (docs/verified.md). Jobs share a call where the operator has asked for that.
        """
        if len(batch.jobs) == 1 and (self._device.type == "cpu" or len(batch.jobs[0].seeds) == 1):
            return 1
        return images_that_fit(resident.plan, self.device_info(), batch.jobs[0].megapixels)

    def _run(
        self, pipe: Any, resident: Resident, batch: Batch, generate: Callable[[int], T]
    ) -> tuple[T, tuple[str, ...]]:
        """Return the result of `generate` for as many images in a call as fit, with the job's scheduler in `pipe`.

        If memory runs out all the same, it is called once more, for one image at a time.
        """
        job = batch.jobs[0]
        with _clean(pipe), device_known(pipe, resident.plan):
            _set_scheduler(pipe, resident, job.scheduler)
            check_schedule(pipe, job.params)
            batch.check()
            at_once = self._at_once(resident, batch)
            try:
                with compatible(pipe):
                    return generate(at_once), ()
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                error.__traceback__ = None
            # One rung down: other models off the device, and fewer images in a call.
            self._pool.evict_unused()
            self._adapters.release()
            devices.release_memory()
            if len(batch.jobs) > 1:
                raise OutOfMemory(f"The device ran out of memory with {len(batch.jobs)} jobs in one call; draw fewer.")
            # One more: one image in a call, the VAE in tiles; then once more, from the same seeds.
            _set_scheduler(pipe, resident, job.scheduler)
            with _tiled_vae(pipe), compatible(pipe):
                result = generate(1)
            note = "Memory was short: the image was decoded in tiles, which can show in fine gradients."
            return result, (note,)


@contextmanager
def _clean(pipe: Any) -> Iterator[None]:
    """Leave `pipe` with no hook state, whatever the job did. Its scheduler is the next job's to set."""
    try:
        yield
    except (JobCancelled, JobTimeout, OutOfMemory, Unmixable):
        # The pipeline was left in mid-call; with offloading its parts are still on the device.
        pipe.maybe_free_model_hooks()
        raise


def _set_scheduler(pipe: Any, resident: Resident, wanted: SchedulerChoice | None) -> None:
    if hasattr(resident.scheduler, "from_config"):  # a few pipelines have none of their own
        pipe.scheduler = build_scheduler(resident.scheduler, wanted)


@contextmanager
def _tiled_vae(pipe: Any) -> Iterator[None]:
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        yield
        return
    was_tiled = getattr(vae, "use_tiling", False)
    vae.enable_tiling()
    try:
        yield
    finally:
        if not was_tiled:
            vae.disable_tiling()


@contextmanager
def _blamed_on(field: str) -> Iterator[None]:
    """Name the request's field in errors of a second model: a loader takes each for the first."""
    try:
        yield
    except WorkerError as error:
        error.field = field if error.field == "model" else error.field
        raise
