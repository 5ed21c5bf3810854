"""The one GPU thread, and the backend that feeds it: a job's files outside, its pipeline inside."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Protocol, TypeVar

from pydantic import JsonValue

from worker.catalog.calls.inputs import FIELDS
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import DeviceLost
from worker.core.job import Batch, Job
from worker.core.model import Detection, ModelFiles, ModelSpec
from worker.core.ports import Engine
from worker.core.result import Emit, EngineReport, JobResult, Progress, Reproduction, Timings, Usage
from worker.service.provisioning import Provisioner

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
# How long a job that has to stop may still sit in one step before the device is called lost.
STUCK_GRACE_S = 60.0
# The same for a model that is being loaded: that cannot be interrupted, and is no reason to replace a worker.
LOAD_GRACE_S = 900.0
# An input picture larger than this is not sent back: it would crowd out the ones that were drawn.
MAX_ECHO_CHARS = 100_000
_NO_MEDIA = "reproduce.input leaves out {}, which is large; send it along to get the same result again."
_VERSIONED = ("diffusers", "transformers", "torch", "universal-image-model-worker")


class ResidentEngine(Engine, Protocol):
    """The engine as its thread knows it: batches, and what operators ask of it."""

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        ...

    def device_info(self) -> DeviceInfo:
        """The device's name and memory, as of now."""
        ...

    def preload(self, spec: ModelSpec, files: ModelFiles, detection: Detection, emit: Emit) -> LoadPlan:
        """Make a model resident."""
        ...

    def unload(self, model: str) -> int:
        """Drop a model from the device."""
        ...


class EngineThread:
    """Owns the engine: builds it in its one thread, runs one thing at a time there, and knows when it is lost."""

    def __init__(self, build: Callable[[], ResidentEngine]) -> None:
        self._build = build
        self._engine: ResidentEngine | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.lost: DeviceLost | None = None
        self.running: str | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine is built."""
        return self._engine is not None

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        return self._engine.resident_models if self._engine else []

    def submit(
        self, work: Callable[[ResidentEngine], T], label: str, begin: Callable[[], None] = lambda: None
    ) -> "Future[T]":
        """Queue `work` for the engine's thread; `begin` is called there first. Raises DeviceLost once it is lost.

        A future that has not begun can be cancelled.
        """
        if self.lost is not None:
            raise self.lost
        return self._executor.submit(self._call, work, label, begin)

    async def call(self, work: Callable[[ResidentEngine], T], label: str) -> T:
        """What `work` returns, once its turn came in the engine's thread. Raises DeviceLost once that is lost."""
        future = self.submit(work, label)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.lost is None or (task is not None and task.cancelling()):
                raise
            raise self.lost from None  # it waited behind the job that hung

    def _call(self, work: Callable[[ResidentEngine], T], label: str, begin: Callable[[], None]) -> T:
        if self.lost is not None:
            raise self.lost
        self.running = label
        try:
            begin()
            if self._engine is None:
                self._engine = self._build()
            return work(self._engine)
        except DeviceLost as error:
            raise self.lose(error) from None
        finally:
            self.running = None

    def lose(self, error: DeviceLost) -> DeviceLost:
        """Give the device up: nothing more runs, and what waits behind a hung step is let go."""
        self.lost = self.lost or error
        self._executor.shutdown(wait=False, cancel_futures=True)
        return self.lost


class LocalBackend:
    """Answers jobs on this machine's own device."""

    def __init__(self, provisioner: Provisioner, engine: EngineThread) -> None:
        self._provisioner = provisioner
        self._engine = engine

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job`. When it is cancelled, this returns only once the engine's thread has let go of it."""
        started = time.monotonic()
        batch = await _through(self._provisioner.provide(job, emit), job)
        provided = time.monotonic()
        turn = _Turn(batch, emit)
        report = await self._on_device(turn, job)
        downloaded = _downloaded(batch)
        timings = Timings(
            queue_s=(started - job.accepted_at) + (turn.begun - provided),
            download_s=provided - started if downloaded else 0.0,
            load_s=(turn.built - turn.begun) + report.load_s,  # the first job also waits for the engine itself
            inference_s=report.inference_s,
            batch_size=len(batch.jobs),
        )
        return _result(job, batch, report, timings)

    async def _on_device(self, turn: "_Turn", job: Job) -> EngineReport:
        future = self._engine.submit(turn.run, job.id, turn.begin)
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waiting}, timeout=max(0.0, job.stop.remaining_s))
            if not waiting.done():
                if future.cancel():  # still in the queue: the device never saw it
                    raise self._engine.lost or job.stop.timed_out()
                await self._let_go(waiting, turn)
            if waiting.cancelled():  # let go by another job that found the device lost
                raise self._engine.lost or job.stop.timed_out()
            return waiting.result()
        except asyncio.CancelledError:
            job.stop.cancel()
            if not future.cancel():
                with suppress(DeviceLost):  # the next job is told
                    await _uninterrupted(self._let_go(waiting, turn))
            raise

    async def _let_go(self, running: "asyncio.Future[EngineReport]", turn: "_Turn") -> None:
        """Wait until a job that has to stop did so at its next step. Raises DeviceLost when not even that comes."""
        patience = time.monotonic() + LOAD_GRACE_S
        while not running.done():
            in_step = not turn.loading
            await asyncio.wait({running}, timeout=STUCK_GRACE_S)
            if not running.done() and (in_step or time.monotonic() > patience):
                raise self._engine.lose(
                    DeviceLost(
                        f"The pipeline did not stop within {STUCK_GRACE_S:g} seconds of being told to; "
                        "this worker is being replaced."
                    )
                )
        if not running.cancelled() and (error := running.exception()) is not None:
            _LOG.info("a job that had to stop ended with %s", type(error).__name__)


class _Turn:
    """One batch's turn in the engine's thread: when it began, when the engine was there, and whether it loads now."""

    def __init__(self, batch: Batch, emit: Emit) -> None:
        self._batch = batch
        self._emit = emit
        self.begun = self.built = time.monotonic()
        self.loading = False

    def begin(self) -> None:
        self.begun = time.monotonic()
        self.loading = True  # the engine itself, the first time

    def run(self, engine: ResidentEngine) -> EngineReport:
        self.built = time.monotonic()
        self.loading = False
        return engine.run(self._batch, self._tell)

    def _tell(self, progress: Progress) -> None:
        if progress.phase == "load":
            self.loading = progress.step < progress.total
        self._emit(progress)


async def _through(work: Awaitable[Batch], job: Job) -> Batch:
    """Await provisioning; on cancellation stop the download and wait until its thread is out."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        job.stop.cancel()
        with suppress(Exception):  # nobody is left to tell
            await _uninterrupted(task)
        raise


async def _uninterrupted(work: Awaitable[T]) -> T:
    """Await `work` to its end, however often we are cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


def _downloaded(batch: Batch) -> int:
    return batch.files.bytes_downloaded + sum(item.files.bytes_downloaded for item in batch.adapters)


def _result(job: Job, batch: Batch, report: EngineReport, timings: Timings) -> JobResult:
    shown = report.artifacts[0]
    first = shown.raster
    parameters: dict[str, JsonValue] = {**job.params, "width": first.width, "height": first.height}
    if job.scheduler is not None:
        parameters["scheduler"] = job.scheduler.name
    revision = batch.files.revision
    left_out = _large_media(job)
    # The denoising steps that really ran: image-to-image skips those that its strength leaves out.
    steps = float(str(job.params.get("num_inference_steps") or 1)) * float(str(job.params.get("strength") or 1))
    return JobResult(
        artifacts=report.artifacts,
        model=job.spec.id,
        revision=revision,
        task=job.task,
        prompt=job.prompt,
        parameters=parameters,
        loras=report.loras,
        timings=timings,
        usage=Usage(
            gpu_seconds=report.inference_s + report.load_s,
            images=len(report.artifacts),
            pixel_steps=first.width
            * first.height
            * max(1, int(steps))
            * len(report.artifacts)
            * max(1, len(shown.frames)),
            peak_memory_gb=report.peak_memory_gb,
            bytes_downloaded=_downloaded(batch),
        ),
        reproduce=Reproduction(
            model=job.spec.source.model_copy(update={"revision": revision}).reference if revision else job.spec.id,
            loras=tuple(f"{item.model}#{item.sha256}" for item in report.loras),
            versions=_versions(),
            input=_input(job),
        ),
        warnings=job.warnings + report.warnings + ((_NO_MEDIA.format(" and ".join(left_out)),) if left_out else ()),
    )


def _input(job: Job) -> dict[str, JsonValue]:
    """What a caller sends to get the same pictures: everything that was chosen for him is written out."""
    request = job.request
    large = _large_media(job)
    left_out = {"params", "progress", "timeout_s", "lightning", "loras", "negative_prompt", *large}
    fixed: dict[str, JsonValue] = request.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    named = {item.field for item in job.media} & request.params.keys()  # by the pipeline's own names
    fixed |= {name: request.params[name] for name in named if name not in large}
    fixed |= {"model": job.spec.id, "task": job.task.value, "prompt": job.prompt, "seed": job.seeds[0], **job.params}
    if job.negative_prompt is not None:
        fixed["negative_prompt"] = job.negative_prompt
    if job.scheduler is not None:
        fixed["scheduler"] = job.scheduler.name
    if request.loras:
        fixed["loras"] = [lora.model_dump(mode="json", exclude_defaults=True) for lora in request.loras]
    if job.spec.lightning is not None:
        fixed["lightning"] = job.lightning
    return fixed


def _large_media(job: Job) -> list[str]:
    """The fields with pictures or videos that are too large to be sent back."""
    sent = {name: getattr(job.request, name) for name in FIELDS}
    sent |= {item.field: job.request.params[item.field] for item in job.media if item.field in job.request.params}
    sizes = {
        name: sum(map(len, value)) if isinstance(value, list | tuple) else len(value or "")
        for name, value in sent.items()
    }
    return [name for name, size in sizes.items() if size > MAX_ECHO_CHARS]


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
