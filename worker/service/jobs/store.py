"""Every job of this process that was handed in, and its answer for as long as that is kept. In memory.

The same job twice is one job. With a key of its caller's (Idempotency-Key) the same id and input are it, and another
input under that id is refused; from a queue, which may deliver a job again, another input is another job.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from worker.core.answer import AnyAnswer
from worker.core.errors import (
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    JobTimeout,
    Overloaded,
    ShuttingDown,
    WorkerError,
)
from worker.core.job_input import JobInput
from worker.core.result import Emit, Progress
from worker.service.jobs.record import JobOptions, JobRecord, Status
from worker.service.usage.privacy import unforeseen

_LOG = logging.getLogger(__name__)

Perform = Callable[[JobInput, str, Emit, str | None], Awaitable[AnyAnswer]]

RETRY_AFTER_S = 5
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of jobs: by state now, and by end since the start."""

    in_queue: int
    in_progress: int
    completed: int
    failed: int
    retried: int


def _nobody(record: JobRecord) -> None:
    """When nobody wants to be told."""


def _anybody(record: JobRecord) -> None:
    """When nobody is turned away."""


def _no_books(record: JobRecord, error: WorkerError) -> None:
    """When nobody counts."""


@dataclass(frozen=True, slots=True)
class StoreBounds:
    """Bounds on how long answers are kept, how many bytes are held, and how many jobs may be under way.

    When all that is held exceeds `max_bytes`, the oldest answers go first. Without `max_under_way` every job is taken:
    somebody else bounds how many come.
    """

    retention_s: float = 1_800.0
    max_bytes: int = 512 * 2**20
    max_under_way: int | None = 1_000


@dataclass(frozen=True, slots=True)
class StoreHooks:
    """Functions that are asked and told.

    `admit` raises for a job that is not to be taken now; `refused` is told of each that was not, `ended` of each that
    ended.
    """

    admit: Callable[[JobRecord], None] = _anybody
    refused: Callable[[JobRecord, WorkerError], None] = _no_books
    ended: Callable[[JobRecord], None] = _nobody


class JobStore:
    """Jobs by id. Used on one event loop. `perform` answers one input."""

    def __init__(self, perform: Perform, bounds: StoreBounds | None = None, hooks: StoreHooks | None = None) -> None:
        self._perform = perform
        self._bounds = bounds or StoreBounds()
        self._hooks = hooks or StoreHooks()
        self._jobs: dict[_Key, JobRecord] = {}
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those too that were told to stop and have not yet
        self._limits: dict[_Key, asyncio.TimerHandle] = {}
        self._lives: dict[_Key, asyncio.TimerHandle] = {}
        self._completed = self._failed = self._retried = 0

    def submit(self, job: JobInput, job_id: str, options: JobOptions, caller: str | None = None) -> JobRecord:
        """Hand in a job of `caller`. The same id and input are the same job; without an answer it runs again.

        Raises InvalidRequest for a known id with another input, unless `options` say that this is another job;
        Overloaded when too many jobs are under way, and what `admit` raises.
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

    def find(self, job_id: str) -> JobRecord:
        """The job with this id. Raises JobNotFound."""
        try:
            return self._jobs[job_id, ""]
        except KeyError:
            raise JobNotFound("No job has this id, or what came of it is no longer kept; submit it again.") from None

    def cancel(self, record: JobRecord) -> None:
        """Take a job back: it is cancelled at once, and stops at its next step. One that is over stays as it is."""
        self._stop(record, Status.CANCELLED, JobCancelled("The job was cancelled."))

    def leave(self, record: JobRecord) -> None:
        """Say that a caller waits no longer; a job that all of them have left is cancelled. Who never waited, stays."""
        record.callers -= 1
        if record.callers <= 0:
            self.cancel(record)

    async def settled(self, record: JobRecord) -> None:
        """Wait until nothing works for a job any more, cancelled as it may be."""
        if record.work is not None and not record.work.done():
            await asyncio.wait({record.work})

    def retry(self, record: JobRecord) -> None:
        """Run a job again that can be retried, under its id."""
        if not record.can_be_retried:
            raise ValueError(f"a job that is {record.status} cannot be retried")
        self._check_taken(record)
        self._retried += 1
        record.begin_anew()
        self._start(record)

    def purge(self) -> int:
        """Cancel every job that waits without a caller who waits for it; returns how many."""
        waiting = [job for job in self._jobs.values() if job.status is Status.QUEUED and job.options.kept]
        for record in waiting:
            self.cancel(record)
        return len(waiting)

    def counts(self) -> Counts:
        """Count the jobs."""
        states = [job.status for job in self._jobs.values()]
        return Counts(
            in_queue=states.count(Status.QUEUED),
            in_progress=states.count(Status.RUNNING),
            completed=self._completed,
            failed=self._failed,
            retried=self._retried,
        )

    async def close(self, within_s: float = 0.0) -> None:
        """Give the jobs that are ending `within_s` seconds, fail the others, and return once all have stopped."""
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
        if self._bounds.max_under_way is None:
            return
        under_way = [job for job in self._jobs.values() if not job.over]
        held = sum(job.bytes for job in under_way)
        if len(under_way) >= self._bounds.max_under_way or held + new.bytes > self._bounds.max_bytes:
            raise Overloaded(
                f"{len(under_way)} jobs are waiting or running, which is all that this worker holds; "
                f"come again in {RETRY_AFTER_S} seconds.",
                details={"retry_after_s": RETRY_AFTER_S},
            )

    def _start(self, record: JobRecord) -> None:
        task = asyncio.get_running_loop().create_task(self._run(record, record.attempt))
        self._running[_key(record)] = record.work = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._forget_in(record, record.options.ttl_s)

    async def _run(self, record: JobRecord, attempt: int) -> None:
        loop = asyncio.get_running_loop()

        def advance(progress: Progress) -> None:
            if not record.over and record.attempt == attempt:
                self._advance(record, progress)

        def emit(progress: Progress) -> None:
            record.tell(progress)
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(advance, progress)

        status = Status.FAILED
        answer: AnyAnswer | None = None
        failure: WorkerError | None = None
        try:
            answer = await self._perform(record.job, record.id, emit, record.caller)
            status = Status.COMPLETED
        except JobTimeout as error:
            status, failure = Status.TIMED_OUT, error
        except JobCancelled as error:
            status, failure = Status.CANCELLED, error
        except WorkerError as error:
            failure = error
        except Exception as error:
            failure = unforeseen(error, record.job.request)
        except asyncio.CancelledError:  # by the store, which has ended it; or the process is ending
            status, failure = Status.CANCELLED, JobCancelled("The job was cancelled.")
        if not record.over and record.attempt == attempt:
            self._end(record, status, answer, failure)

    def _advance(self, record: JobRecord, progress: Progress) -> None:
        limit = record.options.execution_timeout_s
        if record.started_at is None and limit is not None:
            error = JobTimeout(
                f"The job ran longer than its executionTimeout of {limit * 1000:g} ms; raise it, or ask for less.",
                field="policy",
            )
            self._limits[_key(record)] = asyncio.get_running_loop().call_later(
                limit, self._stop, record, Status.TIMED_OUT, error
            )
        record.advance(progress)

    def _stop(self, record: JobRecord, status: Status, error: WorkerError) -> None:
        if not record.over:
            self._running[_key(record)].cancel(error.code)  # the reason, for whoever keeps the books
            self._end(record, status, None, error)

    def _end(self, record: JobRecord, status: Status, answer: AnyAnswer | None, error: WorkerError | None) -> None:
        record.finish(status, answer, error)
        self._running.pop(_key(record), None)
        if limit := self._limits.pop(_key(record), None):
            limit.cancel()
        self._completed += status is Status.COMPLETED
        self._failed += status in (Status.FAILED, Status.TIMED_OUT)
        _LOG.info("job %s: %s", record.id, error.code if error else "completed")
        kept = record.options.kept or (record.options.replayed and answer is not None)
        life = min(self._bounds.retention_s, record.created_at + record.options.ttl_s - time.monotonic())
        if kept and life > 0 and _key(record) in self._jobs:
            self._forget_in(record, life)
            self._drop_oldest(but=record)
        else:
            self._forget(_key(record))
        self._hooks.ended(record)

    def _drop_oldest(self, but: JobRecord) -> None:
        held, limit = sum(job.bytes for job in self._jobs.values()), self._bounds.max_bytes
        if held <= limit:
            return
        for job in sorted((job for job in self._jobs.values() if job.over), key=lambda job: job.finished_at or 0.0):
            if held <= limit or (job is but and not job.options.redelivered):
                break
            held -= job.bytes
            self._forget(_key(job))

    def _forget_in(self, record: JobRecord, seconds: float) -> None:
        if timer := self._lives.pop(_key(record), None):
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._lives[_key(record)] = loop.call_later(max(0.0, seconds), self._forget, _key(record))

    def _forget(self, key: _Key) -> None:
        record = self._jobs.pop(key, None)
        if timer := self._lives.pop(key, None):
            timer.cancel()
        if record is not None:
            self.cancel(record)


def _key(record: JobRecord) -> _Key:
    return record.id, record.job.fingerprint if record.options.redelivered else ""
