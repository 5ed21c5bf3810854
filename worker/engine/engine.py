"""The engine: plan, lease, adapters, call; and the way back to a clean pipeline whatever happens."""

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import JobCancelled, JobTimeout, WorkerError
from worker.core.job import Batch, Job, SchedulerChoice
from worker.core.model import Detection, ModelFiles, ModelSpec
from worker.core.result import Artifact, Emit, EngineReport, LoraReport, Progress
from worker.engine import devices
from worker.engine.adapters.lora import LoraShelf
from worker.engine.call import call_pipeline
from worker.engine.compatibility import old_clip_names
from worker.engine.loader import load_pipeline
from worker.engine.plan import make_plan, resident_key
from worker.engine.pool import PipelinePool, Resident
from worker.engine.schedulers import build_scheduler, check_schedule

_LOG = logging.getLogger(__name__)


class DiffusersEngine:
    """Runs batches on one device. Blocking, and used from one thread only."""

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        max_resident_models: int = 1,
        resident_loras: int = 4,
    ) -> None:
        self._device = devices.choose_device(device)
        self._pool = PipelinePool(max_resident_models)
        self._loras = LoraShelf(resident_loras)

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        return self._pool.models

    def device_info(self) -> DeviceInfo:
        """The device's name and memory, as of now."""
        return devices.probe(self._device)

    def run(self, batch: Batch, emit: Emit) -> EngineReport:
        """Draw every picture of `batch`. Raises WorkerError only; afterwards the pipeline is as it was before."""
        job = batch.jobs[0]
        devices.reset_peak(self._device)
        started = time.monotonic()
        try:
            with self._lease(job, batch.files, emit) as resident:
                loaded = time.monotonic()
                artifacts, reports, warnings = self._draw(resident, batch, emit)
            return EngineReport(
                artifacts=artifacts,
                loras=reports,
                load_s=loaded - started,
                inference_s=time.monotonic() - loaded,
                peak_memory_gb=devices.peak_memory_gb(self._device),
                warnings=warnings,
            )
        except WorkerError as error:
            # A traceback holds the frames that hold the tensors: without it their memory is free.
            raise error.with_traceback(None) from None
        except Exception as error:
            # The library's own words help whoever reads the log; a caller's words have no place there.
            where = "".join(traceback.format_tb(error.__traceback__))
            said = str(error).replace(job.prompt, "[prompt]") if job.prompt else str(error)
            _LOG.error("job %s failed with %s: %s\n%s", job.id, type(error).__name__, said, where)
            self._pool.evict(resident_key(job.spec, batch.files))
            failure = devices.device_failure(error)
        devices.release_memory()
        raise failure

    def preload(self, spec: ModelSpec, files: ModelFiles, detection: Detection, emit: Emit) -> LoadPlan:
        """Make a model resident. Raises LoadFailed, OutOfMemory …"""
        plan = self._plan(spec, files, detection, megapixels=0.25)
        with self._pool.lease(resident_key(spec, files), lambda: _load(spec, plan, emit)) as resident:
            return resident.plan

    def unload(self, model: str) -> int:
        """Drop a model from the device; returns how many residents that were."""
        return self._pool.evict_model(model)

    @contextmanager
    def _lease(self, job: Job, files: ModelFiles, emit: Emit) -> Iterator[Resident]:
        job.stop.check()
        key = resident_key(job.spec, files)

        def load() -> Resident:
            # Evict first, then look at what is free.
            plan = self._plan(job.spec, files, job.detection, _megapixels(job))
            return _load(job.spec, plan, emit)

        with self._pool.lease(key, load) as resident:
            yield resident

    def _plan(self, spec: ModelSpec, files: ModelFiles, detection: Detection, megapixels: float) -> LoadPlan:
        return make_plan(spec, files, detection, self.device_info(), megapixels=megapixels)

    def _draw(
        self, resident: Resident, batch: Batch, emit: Emit
    ) -> tuple[tuple[Artifact, ...], tuple[LoraReport, ...], tuple[str, ...]]:
        job = batch.jobs[0]
        pipe = resident.as_class(job.pipeline)
        with _clean(pipe, resident), self._loras.applied(pipe, batch.adapters, job.spec.id) as reports:
            _set_scheduler(pipe, resident, job.scheduler)
            check_schedule(pipe, job.params)
            job.stop.check()
            try:
                with old_clip_names(pipe):
                    return call_pipeline(pipe, batch, emit), reports, ()
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                error.__traceback__ = None
            # One rung down: other models off the device, the VAE in tiles; then once more, from the same seeds.
            self._pool.evict_others(resident_key(job.spec, batch.files))
            devices.release_memory()
            _set_scheduler(pipe, resident, job.scheduler)
            with _tiled_vae(pipe), old_clip_names(pipe):
                artifacts = call_pipeline(pipe, batch, emit)
            note = "Memory was short: the picture was decoded in tiles, which can show in fine gradients."
            return artifacts, reports, (note,)


@contextmanager
def _clean(pipe: Any, resident: Resident) -> Iterator[None]:
    """Leave `pipe` with its own scheduler and no hook state, whatever the job did."""
    try:
        yield
    except (JobCancelled, JobTimeout):
        # The pipeline was left in mid-call; with offloading its parts are still on the device.
        pipe.maybe_free_model_hooks()
        raise
    finally:
        _set_scheduler(pipe, resident, None)


def _set_scheduler(pipe: Any, resident: Resident, wanted: SchedulerChoice | None) -> None:
    if hasattr(resident.scheduler, "from_config"):  # a few pipelines have none of their own
        pipe.scheduler = build_scheduler(resident.scheduler_config, resident.scheduler, wanted)


@contextmanager
def _tiled_vae(pipe: Any) -> Iterator[None]:
    vae = getattr(pipe, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        yield
        return
    before = getattr(vae, "use_tiling", False)
    vae.enable_tiling()
    try:
        yield
    finally:
        if not before:
            vae.disable_tiling()


def _load(spec: ModelSpec, plan: LoadPlan, emit: Emit) -> Resident:
    emit(Progress("load", 0, 1, spec.id))
    pipe = load_pipeline(plan)
    emit(Progress("load", 1, 1, spec.id))
    scheduler = getattr(pipe, "scheduler", None)
    return Resident(spec.id, plan, pipe, type(scheduler), dict(scheduler.config) if scheduler is not None else {})


def _megapixels(job: Job) -> float:
    usual = job.detection.native_size or 1024
    width, height = job.params.get("width") or usual, job.params.get("height") or usual
    return float(width) * float(height) * len(job.seeds) / 1e6
