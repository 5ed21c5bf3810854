"""One batch run in the engine's thread: split into smaller calls if it must be, every job answered by itself."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

from worker.core.errors import (
    DeviceLost,
    JobCancelled,
    JobTimeout,
    LoadFailed,
    OutOfMemory,
    WorkerError,
    without_frames,
)
from worker.core.job import Batch, Job
from worker.core.result import Artifact, Emit, EngineReport, Outcome, Progress
from worker.service.limits.admission import pixel_steps
from worker.service.local.engine_thread import ResidentEngine
from worker.service.local.pace import CallKind
from worker.service.local.watchdog import Watchdog

_LOG = logging.getLogger(__name__)
# Errors that hit all jobs of a batch alike: to generate one by one would only fail once for each job.
_OF_ALL = (LoadFailed, JobCancelled, JobTimeout)


@dataclass(frozen=True, slots=True)
class Generated:
    """The engine's output for one job. `report` is of all jobs in its call; `share` is this job's part of the cost."""

    artifacts: tuple[Artifact, ...]
    report: EngineReport
    share: float
    begun: float  # on time.monotonic's clock
    built_s: float  # seconds to build the engine itself before


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One job with its files, from provisioning to its answer. A cancelled answer means that no caller waits."""

    batch: Batch  # of this job alone
    emit: Emit
    arrived_at: float
    key: str  # jobs with the same key may share a batch
    loras: str = field(init=False)  # jobs with the same have the same LoRAs
    answer: "asyncio.Future[Generated]" = field(init=False)
    context: Context = field(init=False, default_factory=copy_context)  # for its log lines in the engine's thread
    batch_run: "BatchRun | None" = None
    caller: str | None = None  # whose share of the device it takes
    _last: Progress | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()
        self.loras = self.batch.lora_key

    @property
    def job(self) -> Job:
        """The job."""
        return self.batch.jobs[0]

    @property
    def images(self) -> int:
        """The number of images that the job asks for."""
        return len(self.job.seeds)

    def tell(self, progress: Progress) -> None:
        """Emit progress. It never goes back: a job that is generated again repeats the furthest step it had reached."""
        last = self._last
        if progress.phase == "inference":
            if last is not None and progress.step * last.total < last.step * progress.total:
                progress = replace(progress, step=last.step, total=last.total)
            self._last = progress
        self.emit(progress)

    def settle(self, outcome: Generated | BaseException) -> None:
        """Answer, unless the job was answered or no caller waits any more. On the event loop only."""
        self.batch_run = None  # each would hold the other, and its images, until somebody searches for garbage
        if self.answer.done():
            return
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
            self.answer.exception()  # marked as retrieved: the caller may be gone already
        else:
            self.answer.set_result(outcome)

    def leave(self) -> None:
        """Note that no caller waits any more."""
        self.batch_run = None
        self.answer.cancel()


class BatchRun:
    """One run of some queued jobs. Made on the event loop, run in the engine's thread, answered on the loop again."""

    def __init__(self, queued_jobs: list[QueuedJob], watchdog: Watchdog) -> None:
        self.queued_jobs = queued_jobs
        self._watchdog = watchdog
        self.loading = self._found = False
        self.load_s = 0.0
        self.calls: list[tuple[CallKind, int, float]] = []
        """The kind and the images of each call that was made as a whole, and its seconds."""
        self.standing = ""
        """A key of what the seconds of its calls belong to."""
        self.fits: int | None = None
        """The number of images to try next time, once memory ran out."""
        self.future: Future[None] | None = None  # None until it was submitted to the engine's thread
        self.over: asyncio.Future[None] | None = None  # the same future for the event loop
        self._loop = asyncio.get_running_loop()
        self._begun = self._built = time.monotonic()
        for queued in queued_jobs:
            queued.batch_run = self

    @property
    def label(self) -> str:
        """The ids of its jobs."""
        return ", ".join(queued.job.id for queued in self.queued_jobs)

    @property
    def is_to_begin(self) -> bool:
        """True while the engine's thread is still busy with other work."""
        return self.future is not None and not self.future.running() and not self.future.done()

    @property
    def has_ended(self) -> bool:
        """True once the engine's thread is done with it, even if the event loop has not been told."""
        return self.future is not None and self.future.done()

    def is_only_for(self, queued: QueuedJob) -> bool:
        """True if no other job waits for the engine's present work."""
        return all(other is queued or other.answer.done() for other in self.queued_jobs)

    def begin(self) -> None:
        """Note that the engine's thread begins with this."""
        self._begun = time.monotonic()
        self.loading = True  # the engine itself, the first time

    def run(self, engine: ResidentEngine) -> None:
        """Generate all jobs, in as few calls as fit."""
        self._built = time.monotonic()
        self.loading = False
        groups = [self.queued_jobs]
        while groups:
            group = [queued for queued in groups.pop(0) if self._is_wanted(queued)]
            if group:
                groups[:0] = self._generate(engine, group)
                if self._found:  # of jobs that failed together, the one at fault: the others are one call again
                    alone = list(takewhile(lambda others: len(others) == 1, groups))
                    groups[: len(alone)] = [[queued for others in alone for queued in others]]
                    self._found = False
                self._begun = self._built = time.monotonic()

    def _generate(self, engine: ResidentEngine, group: list[QueuedJob]) -> list[list[QueuedJob]]:
        """Make one call, and return the jobs left to generate after it, in groups.

        Out of memory splits a group in halves. Any other failure may be any job's, so that each is generated alone
        until one fails alone.
        """
        images = sum(queued.images for queued in group)
        batch = Batch.joined([queued.batch for queued in group])
        try:
            report = engine.run(batch, partial(self._tell, group, _model_bytes(batch), _kind(group)))
        except DeviceLost:
            raise
        except WorkerError as error:
            without_frames(error)
            if len(group) == 1 or isinstance(error, _OF_ALL):
                for queued in group:
                    self._settle(queued, queued.job.stop.reason or error)
                self._found = len(group) == 1
                return []
            _LOG.info("%d jobs in one call: %s; they are generated in smaller ones", len(group), error.code)
            if isinstance(error, OutOfMemory):
                self.fits = max(1, images // 2)
                return [group[: len(group) // 2], group[len(group) // 2 :]]
            return [[queued] for queued in group]
        self._watchdog.finished()
        self.load_s += report.load_s
        self.standing = report.standing
        done = group[: len(report.outcomes)]
        images = sum(queued.images for queued in done)
        if _is_usual(done, report):
            self.calls.append((call_kind(done), images, report.inference_s))
        for queued, outcome in zip(done, report.outcomes, strict=True):
            # Jobs of one call have the same size and steps, so shares of images are shares of pixel-steps.
            self._settle(queued, self._generated(report, outcome, queued.images / images))
        return [group[len(done) :]]

    def _generated(self, report: EngineReport, outcome: Outcome, share: float) -> Generated | WorkerError:
        if isinstance(outcome, WorkerError):
            return outcome
        return Generated(outcome, report, share, self._begun, self._built - self._begun)

    def _is_wanted(self, queued: QueuedJob) -> bool:
        if queued.answer.done():
            return False
        reason = queued.job.stop.reason
        if reason is not None:
            self._settle(queued, reason)
        return reason is None

    def _tell(self, group: list[QueuedJob], model_bytes: int, kind: str, progress: Progress) -> None:
        self._watchdog.hear(progress, model_bytes, kind)
        if progress.phase == "load":
            self.loading = progress.step < progress.total
        for queued in group[: progress.jobs]:
            if not queued.answer.done():
                try:
                    queued.tell(progress)
                except Exception as error:  # a failing door must not fail the other jobs
                    _LOG.warning("job %s: progress was not told: %s", queued.job.id, type(error).__name__)

    def _settle(self, queued: QueuedJob, outcome: Generated | WorkerError) -> None:
        self._loop.call_soon_threadsafe(queued.settle, outcome)


def _is_usual(jobs: Sequence[QueuedJob], report: EngineReport) -> bool:
    """True of a call whose seconds say what others of its kind will take; a profiled one takes longer."""
    return not jobs[0].job.is_profiled and not any(isinstance(each, WorkerError) for each in report.outcomes)


def call_kind(jobs: Sequence[QueuedJob]) -> CallKind:
    """Return what a call for these jobs has in common with others that take equally long for one image."""
    job, mixes = jobs[0].job, len({queued.loras for queued in jobs}) > 1
    steps = job.params.get("num_inference_steps")
    work, images = pixel_steps(job), len(job.seeds)
    pixels = work // images // (steps if isinstance(steps, int) and steps > 0 else 1)
    form = (job.quality, job.call.spec.precision)
    adapters = "mixed" if mixes else len(job.adapters)
    kind = (job.call.pipeline, work // images, adapters, form, job.finishing.upscaler is not None)
    return CallKind(job.call.spec.id, repr(kind), pixels)


def _kind(group: list[QueuedJob]) -> str:
    """Return what tells calls apart that take longer or shorter."""
    job, batch = group[0].job, group[0].batch
    finishing = (batch.finishing.refiner is not None, batch.finishing.upscaler is not None)
    work = [pixel_steps(queued.job) for queued in group]
    form = (job.quality, job.call.spec.precision, job.is_profiled)
    return repr((job.call.spec.id, job.call.task, work, len(job.seeds), len(job.adapters), finishing, form))


def _model_bytes(batch: Batch) -> int:
    """Return the bytes of every model that a batch may have loaded."""
    models = (batch.files, batch.finishing.refiner, batch.finishing.upscaler)
    return sum(files.total_bytes for files in models if files is not None)
