"""One batch's batch_run in the engine's thread: split where it must be, and every job answered for itself."""

import asyncio
import logging
import time
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import partial

from worker.core.errors import DeviceLost, JobCancelled, JobTimeout, LoadFailed, OutOfMemory, WorkerError
from worker.core.job import Batch, Job
from worker.core.result import Artifact, Emit, EngineReport, Outcome, Progress
from worker.service.local.engine_thread import ResidentEngine

_LOG = logging.getLogger(__name__)
# What hits all jobs of a batch alike: drawing them one by one would only fail as often as there are jobs.
_OF_ALL = (LoadFailed, JobCancelled, JobTimeout)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the engine did for one job. `report` is of all the jobs in its call, `share` this one's part of the cost."""

    artifacts: tuple[Artifact, ...]
    report: EngineReport
    share: float
    begun: float  # on time.monotonic's clock
    built_s: float  # seconds that the engine itself was built first


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One job with its files, from when it may be drawn until it is answered. The answer cancelled: nobody waits."""

    batch: Batch  # of this job alone
    emit: Emit
    came: float
    key: str  # who has the same may be drawn together
    answer: "asyncio.Future[Drawn]" = field(init=False)
    context: Context = field(init=False, default_factory=copy_context)  # what its log lines say in the engine's thread
    batch_run: "BatchRun | None" = None
    _told: Progress | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()

    @property
    def job(self) -> Job:
        """The job."""
        return self.batch.jobs[0]

    @property
    def images(self) -> int:
        """How many images it wants."""
        return len(self.job.seeds)

    def tell(self, progress: Progress) -> None:
        """Tell how far the drawing is. It is never told to be back: what is drawn again tells where it had been."""
        told = self._told
        if progress.phase == "inference":
            if told is not None and progress.step * told.total < told.step * progress.total:
                progress = replace(progress, step=told.step, total=told.total)
            self._told = progress
        self.emit(progress)

    def settle(self, outcome: Drawn | BaseException) -> None:
        """Answer, unless that was done or nobody waits any more. On the event loop only."""
        if self.answer.done():
            return
        if isinstance(outcome, BaseException):
            self.answer.set_exception(outcome)
            self.answer.exception()  # seen: who waits may be gone by the time he could look
        else:
            self.answer.set_result(outcome)


class BatchRun:
    """Some queued_jobs' batch_run. Made on the event loop, run in the engine's thread, answered on the loop again."""

    def __init__(self, queued_jobs: list[QueuedJob]) -> None:
        self.queued_jobs = queued_jobs
        self.loading = False
        self.load_s = 0.0
        self.fits: int | None = None
        """How many images are worth trying the next time, once memory ran out."""
        self.future: Future[None] | None = None  # None until the engine's thread was asked
        self.over: asyncio.Future[None] | None = None  # the same for the event loop
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
        """Whether the engine's thread is still busy with something else."""
        return self.future is not None and not self.future.running() and not self.future.done()

    @property
    def has_ended(self) -> bool:
        """Whether the engine's thread is done with it, whatever the event loop has heard of that."""
        return self.future is not None and self.future.done()

    def is_only_for(self, queued: QueuedJob) -> bool:
        """Whether nobody but `queued` waits for what the engine does now."""
        return all(other is queued or other.answer.done() for other in self.queued_jobs)

    def begin(self) -> None:
        """The thread is free for this."""
        self._begun = time.monotonic()
        self.loading = True  # the engine itself, the first time

    def run(self, engine: ResidentEngine) -> None:
        """Draw all, each as soon as it can be, in as few calls as fit."""
        self._built = time.monotonic()
        self.loading = False
        groups = [self.queued_jobs]
        while groups:
            group = [queued for queued in groups.pop(0) if self._is_wanted(queued)]
            if group:
                groups[:0] = self._draw(engine, group)
                self._begun = self._built = time.monotonic()

    def _draw(self, engine: ResidentEngine, group: list[QueuedJob]) -> list[list[QueuedJob]]:
        """One call; what is left to be drawn after it, in groups.

        Memory that ran out splits a group in halves. Of any other failure it is not known whose it is, so that each
        job is drawn alone.
        """
        images = sum(queued.images for queued in group)
        batch = replace(group[0].batch, jobs=tuple(queued.job for queued in group))
        try:
            report = engine.run(batch, partial(self._tell, group))
        except DeviceLost:
            raise
        except WorkerError as error:
            if len(group) == 1 or isinstance(error, _OF_ALL):
                for queued in group:
                    self._settle(queued, queued.job.stop.reason or error)
                return []
            _LOG.info("%d jobs in one call: %s; they are drawn in smaller ones", len(group), error.code)
            if isinstance(error, OutOfMemory):
                self.fits = max(1, images // 2)
                return [group[: len(group) // 2], group[len(group) // 2 :]]
            return [[queued] for queued in group]
        self.load_s += report.load_s
        done = group[: len(report.outcomes)]
        images = sum(queued.images for queued in done)
        for queued, outcome in zip(done, report.outcomes, strict=True):
            # Jobs of one call have size and steps in common, so that the images are to each other as the pixel-steps.
            self._settle(queued, self._drawn(report, outcome, queued.images / images))
        return [group[len(done) :]]

    def _drawn(self, report: EngineReport, outcome: Outcome, share: float) -> Drawn | WorkerError:
        if isinstance(outcome, WorkerError):
            return outcome
        return Drawn(outcome, report, share, self._begun, self._built - self._begun)

    def _is_wanted(self, queued: QueuedJob) -> bool:
        if queued.answer.done():
            return False
        reason = queued.job.stop.reason
        if reason is not None:
            self._settle(queued, reason)
        return reason is None

    def _tell(self, group: list[QueuedJob], progress: Progress) -> None:
        if progress.phase == "load":
            self.loading = progress.step < progress.total
        for queued in group[: progress.jobs]:
            if not queued.answer.done():
                try:
                    queued.tell(progress)
                except Exception as error:  # one door's trouble is none of its companions'
                    _LOG.warning("job %s: progress was not told: %s", queued.job.id, type(error).__name__)

    def _settle(self, queued: QueuedJob, outcome: Drawn | WorkerError) -> None:
        self._loop.call_soon_threadsafe(queued.settle, outcome)
