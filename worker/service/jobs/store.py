"""The jobs submitted to this process, and their answers for as long as these are kept. In memory.

The same job twice is one job. With a caller's key (Idempotency-Key), the same id and input are the same job, and
another input under that id is refused. From a queue, which may deliver a job again, another input is another job.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

from worker.core.answer import AnyAnswer
from worker.core.errors import (
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobTimeout,
    Overloaded,
    ShuttingDown,
    WorkerError,
    contained,
    without_frames,
)
from worker.core.job_input import JobInput
from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal, Turn, under_way
from worker.service.jobs.record import JobOptions, JobRecord, Status
from worker.service.jobs.work_clock import ExecutionClock
from worker.service.usage.privacy import unforeseen

_LOG = logging.getLogger(__name__)

Perform = Callable[[JobInput, str, Emit, str | None], Awaitable[AnyAnswer]]

RETRY_AFTER_S = 5
_TRAINING_CANCELLED = (
    "The training was cancelled, and keeps a checkpoint of its last step; send the same request again, and it goes on "
    "from there."
)
_Key = tuple[str, str]


class Anybody(Enum):
    """Stands for all callers. None is a caller too: the one of a server without keys."""

    ANYBODY = auto()


ANYBODY = Anybody.ANYBODY


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of jobs: by state now, and by end since the start."""

    in_queue: int
    in_progress: int
    completed: int
    failed: int
    retried: int


def _tell_nobody(record: JobRecord) -> None:
    """Default of `ended`: tell nobody."""


def _admit_all(record: JobRecord) -> None:
    """Default of `admit`: admit every job."""


def _count_nothing(record: JobRecord, error: WorkerError) -> None:
    """Default of `refused`: count nothing."""


@dataclass(frozen=True, slots=True)
class StoreBounds:
    """Bounds on how long answers are kept, how many bytes are held, and how many jobs may be under way, of what size.

    When jobs and answers exceed `max_bytes`, the oldest answers go first. Without `max_under_way` every job is taken:
    then the door bounds the number of jobs.
    """

    retention_s: float = 1_800.0
    max_bytes: int = 512 * 2**20
    max_under_way: int | None = 1_000
    max_under_way_bytes: int = 512 * 2**20


@dataclass(frozen=True, slots=True)
class StoreHooks:
    """Functions that the store calls.

    `admit` raises for a job that must not be taken now. `refused` gets each job that was not taken, `ended` each job
    that ended.
    """

    admit: Callable[[JobRecord], None] = _admit_all
    refused: Callable[[JobRecord, WorkerError], None] = _count_nothing
    ended: Callable[[JobRecord], None] = _tell_nobody


class JobStore:
    """Jobs by id, on one event loop. `perform` answers one input."""

    def __init__(self, perform: Perform, bounds: StoreBounds | None = None, hooks: StoreHooks | None = None) -> None:
        self._perform = perform
        self._bounds = bounds or StoreBounds()
        self._hooks = hooks or StoreHooks()
        self._jobs: dict[_Key, JobRecord] = {}
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also those that were cancelled and have not stopped yet
        self._expiries: dict[_Key, asyncio.TimerHandle] = {}
        self._under_way, self._over = _Sizes(), _Sizes()
        self._completed = self._failed = self._retried = 0

    def submit(self, job: JobInput, job_id: str, options: JobOptions, caller: str | None = None) -> JobRecord:
        """Submit a job of `caller`. The same id and input are the same job; without an answer it runs again.

        Raises InvalidRequest for a known id with another input, unless `options` say that this is another job.
        Raises Overloaded when too many jobs are under way, and the errors of `admit`.
        """
        new = JobRecord(job_id, job, options, caller)
        record = self._jobs.get(_key(new))
        if record is None:
            record = new
            self._check_taken(record)
            self._jobs[_key(record)] = record
            self._start(record)
        elif record.job.fingerprint != job.fingerprint:
            raise InvalidRequest(
                "This Idempotency-Key came with another request before; use a new one.", field="Idempotency-Key"
            )
        elif record.over and record.answer is None:
            self._check_taken(record)
            record.begin_anew()
            self._start(record)
        record.callers += 1
        return record

    def find(self, job_id: str, only_of: str | Anybody | None = ANYBODY) -> JobRecord:
        """Return the job with this id. Raises JobNotFound, in the same words for a job of another than `only_of`."""
        record = self._jobs.get((job_id, ""))
        if record is None or only_of not in (ANYBODY, record.caller):
            raise JobNotFound(
                "No job of this caller has this id, or what came of it is no longer kept; submit it again.", field="id"
            )
        return record

    def listed(self, only_of: str | Anybody | None = ANYBODY) -> list[JobRecord]:
        """Return the jobs of `only_of` that are under way or whose answers are kept, the newest first."""
        jobs = [job for job in self._jobs.values() if only_of in (ANYBODY, job.caller)]
        return sorted(jobs, key=lambda job: job.created_at, reverse=True)

    def cancel(self, record: JobRecord) -> None:
        """Cancel a job at once; its work stops at its next step. A job that is over stays as it is."""
        trains = record.job.action == "train"
        self._stop(record, Status.CANCELLED, JobCancelled(_TRAINING_CANCELLED if trains else "The job was cancelled."))

    def leave(self, record: JobRecord) -> None:
        """Note that one caller waits no longer, and cancel the job once all have left. One that never waited stays."""
        record.callers -= 1
        if record.callers <= 0:
            self.cancel(record)

    async def settled(self, record: JobRecord) -> None:
        """Wait until no work runs for a job any more, even if it was cancelled."""
        if record.work is not None and not record.work.done():
            await asyncio.wait({record.work})

    def retry(self, record: JobRecord) -> None:
        """Run a retryable job again under its id. Raises ValueError for other jobs, and the errors of `submit`."""
        if not record.can_be_retried:
            raise ValueError(f"a job that is {record.status} cannot be retried")
        self._check_taken(record)
        self._retried += 1
        record.begin_anew()
        self._start(record)

    def purge(self) -> int:
        """Cancel every queued job without a waiting caller, and return how many there were."""
        waiting = [job for job in self._jobs.values() if job.status is Status.QUEUED and job.options.kept]
        for record in waiting:
            self.cancel(record)
        return len(waiting)

    @property
    def under_way(self) -> int:
        """The number of jobs that are not over."""
        return len(self._running)

    def counts(self) -> Counts:
        """Return the numbers of jobs."""
        states = [self._jobs[key].status for key in self._running if key in self._jobs]  # not of those that are over
        return Counts(
            in_queue=states.count(Status.QUEUED),
            in_progress=states.count(Status.RUNNING),
            completed=self._completed,
            failed=self._failed,
            retried=self._retried,
        )

    async def close(self, within_s: float = 0.0) -> None:
        """Give running jobs `within_s` seconds to end, fail the others, and return once all have stopped."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        error = ShuttingDown("This worker is being stopped and could not finish the job in time; send it again.")
        for record in [*self._jobs.values()]:
            self._stop(record, Status.FAILED, error)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for key in [*self._jobs]:
            self._forget(key)

    def _check_taken(self, new: JobRecord) -> None:
        try:
            self._hooks.admit(new)
            self._check_room(new)
        except WorkerError as error:
            self._hooks.refused(new, error)
            raise

    def _check_room(self, new: JobRecord) -> None:
        bounds = self._bounds
        if bounds.max_under_way is None:
            return
        under_way = self._under_way
        held_bytes = under_way.bytes + new.bytes
        # A job alone is taken whatever its size: it would never fit better.
        is_full = len(under_way) > 0 and held_bytes > bounds.max_under_way_bytes
        if is_full or len(under_way) >= bounds.max_under_way:
            raise Overloaded(
                f"{len(under_way)} jobs are waiting or running, which with their images is all that this worker "
                f"holds; come again in {RETRY_AFTER_S} seconds.",
                details={"retry_after_s": RETRY_AFTER_S},
            )

    def _start(self, record: JobRecord) -> None:
        received_at = record.options.received_at if record.attempt == 1 else None
        record.turn = Turn(record.caller, StopSignal(began=received_at), self._clock(record))
        task = asyncio.get_running_loop().create_task(self._run(record, record.attempt))
        self._running[_key(record)] = record.work = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._over.remove(_key(record))
        self._under_way.add(_key(record), record.bytes)
        self._forget_in(record, record.options.ttl_s)

    def _clock(self, record: JobRecord) -> ExecutionClock | None:
        limit = record.options.execution_timeout_s
        if limit is None:
            return None
        error = JobTimeout(
            f"The job ran longer than its executionTimeout of {limit * 1000:g} ms; raise it, or ask for less.",
            field="policy",
        )
        return ExecutionClock(limit, lambda: self._stop(record, Status.TIMED_OUT, error))

    async def _run(self, record: JobRecord, attempt: int) -> None:
        under_way.set(record.turn)
        loop = asyncio.get_running_loop()

        def advance(progress: Progress) -> None:
            if not record.over and record.attempt == attempt:
                self._advance(record, progress)

        def emit(progress: Progress) -> None:
            record.tell(progress)
            with suppress(RuntimeError):  # the loop is closed: there are no readers any more
                loop.call_soon_threadsafe(advance, progress)

        answer: AnyAnswer | None = None
        failure: WorkerError | None = None
        try:
            answer = await self._perform(record.job, record.id, emit, record.caller)
            status = Status.COMPLETED
        # CancelledError is by the store, which has ended the job, or the process is ending; the last two are of a
        # library: Ctrl-C never comes into this task.
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
            status, failure = _failed(error, record.job.request)
        if not record.over and record.attempt == attempt:
            self._end(record, status, answer, failure)

    def _advance(self, record: JobRecord, progress: Progress) -> None:
        if record.turn.clock is not None:
            record.turn.clock.go()
        record.advance(progress)

    def _stop(self, record: JobRecord, status: Status, error: WorkerError) -> None:
        if not record.over:
            record.turn.stop.cancel()
            self._running[_key(record)].cancel(error.code)  # the reason, for the usage log
            self._end(record, status, None, error)

    def _end(self, record: JobRecord, status: Status, answer: AnyAnswer | None, error: WorkerError | None) -> None:
        record.finish(status, answer, error)
        self._under_way.remove(_key(record))
        self._running.pop(_key(record), None)
        if record.turn.clock is not None:
            record.turn.clock.pause()
        self._completed += status is Status.COMPLETED
        self._failed += status in (Status.FAILED, Status.TIMED_OUT)
        _LOG.info("job %s: %s", record.id, error.code if error else "completed")
        is_kept = record.options.kept or (record.options.replayed and answer is not None)
        life_s = min(self._bounds.retention_s, record.created_at + record.options.ttl_s - time.monotonic())
        if is_kept and life_s > 0 and _key(record) in self._jobs:
            self._over.add(_key(record), record.bytes)
            self._forget_in(record, life_s)
            self._drop_oldest(but=record)
        else:
            self._forget(_key(record))
        self._hooks.ended(record)

    def _drop_oldest(self, but: JobRecord) -> None:
        for key in self._over.oldest_first():
            if self._under_way.bytes + self._over.bytes <= self._bounds.max_bytes:
                break
            if key == _key(but) and not but.options.redelivered:
                break
            self._forget(key)

    def _forget_in(self, record: JobRecord, seconds: float) -> None:
        if timer := self._expiries.pop(_key(record), None):
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._expiries[_key(record)] = loop.call_later(max(0.0, seconds), self._forget, _key(record))

    def _forget(self, key: _Key) -> None:
        record = self._jobs.pop(key, None)
        self._over.remove(key)
        if timer := self._expiries.pop(key, None):
            timer.cancel()
        if record is not None:
            self.cancel(record)


class _Sizes:
    """Bytes of jobs by their keys, and the sum of them: every job asks for it, and there may be thousands."""

    def __init__(self) -> None:
        self._bytes: dict[_Key, int] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, key: _Key, size: int) -> None:
        """Note a job as the newest."""
        self.remove(key)
        self._bytes[key] = size
        self.bytes += size

    def remove(self, key: _Key) -> None:
        """Forget a job, if it is known."""
        self.bytes -= self._bytes.pop(key, 0)

    def oldest_first(self) -> Iterator[_Key]:
        """Yield the keys in the order in which they were noted. The one that was yielded last may be removed."""
        while (key := next(iter(self._bytes), None)) is not None:
            yield key
            if key in self._bytes:
                return


def _key(record: JobRecord) -> _Key:
    return record.id, record.job.fingerprint if record.options.redelivered else ""


def _failed(error: BaseException, request: object) -> tuple[Status, WorkerError]:
    """Return what a job came to that ended with this error; nothing of the job hangs on it any more."""
    if isinstance(error, asyncio.CancelledError):
        failure: WorkerError = JobCancelled("The job was cancelled.")
    else:
        failure = error if isinstance(error, WorkerError) else unforeseen(contained(error), request)
    without_frames(error)
    states = {JobTimeout: Status.TIMED_OUT, JobCancelled: Status.CANCELLED}
    return next((state for kind, state in states.items() if isinstance(failure, kind)), Status.FAILED), failure
