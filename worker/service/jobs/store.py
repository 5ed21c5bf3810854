"""Every job of this process that was handed in, and its answer for as long as that is kept. In memory."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from pydantic import JsonValue

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
from worker.core.result import Emit, Progress
from worker.service.jobs.record import JobOptions, JobRecord, Status, digest

_LOG = logging.getLogger(__name__)

Perform = Callable[[object, str, Emit, str | None], Awaitable[AnyAnswer]]

RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs stand where now, and how many ended how since the start."""

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


class JobStore:
    """Jobs by id. Used on one event loop.

    An answer is kept for `retention_s`; when all that is held exceeds `max_bytes`, the oldest answers go first.
    `admit` raises for a job that is not to be taken now. `notify` is called for each job that ended, `refused` for each
    that was not taken.
    """

    def __init__(
        self,
        perform: Perform,
        unforeseen: Callable[[Exception, object], WorkerError],
        *,
        retention_s: float = 1_800.0,
        max_bytes: int = 512 * 2**20,
        max_under_way: int = 1_000,
        admit: Callable[[JobRecord], None] = _anybody,
        notify: Callable[[JobRecord], None] = _nobody,
        refused: Callable[[JobRecord, WorkerError], None] = _no_books,
    ) -> None:
        self._perform = perform
        self._unforeseen = unforeseen
        self._retention_s = retention_s
        self._max_bytes = max_bytes
        self._max_under_way = max_under_way
        self._admit = admit
        self._notify = notify
        self._refused = refused
        self._jobs: dict[str, JobRecord] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those too that were told to stop and have not yet
        self._limits: dict[str, asyncio.TimerHandle] = {}
        self._lives: dict[str, asyncio.TimerHandle] = {}
        self._completed = self._failed = self._retried = 0

    def submit(self, payload: JsonValue, job_id: str, options: JobOptions, caller: str | None = None) -> JobRecord:
        """Hand in a job of `caller`. The same id and payload are the same job; without an answer it runs again.

        Raises InvalidRequest for a known id with another payload, Overloaded when too many jobs are under way, and what
        `admit` raises.
        """
        record = self._jobs.get(job_id)
        if record is None:
            record = JobRecord(job_id, payload, options, caller)
            self._check_taken(record)
            self._jobs[job_id] = record
            self._start(record)
        elif record.digest != digest(payload):
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
            return self._jobs[job_id]
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

    def retry(self, record: JobRecord) -> None:
        """Run a failed or timed out job again, under its id. Raises InvalidRequest for any other."""
        if record.status not in (Status.FAILED, Status.TIMED_OUT):
            raise InvalidRequest(
                f"Only a job that is FAILED or TIMED_OUT can be retried; this one is {record.status}.", field="id"
            )
        self._check_taken(record)
        self._retried += 1
        record.begin_anew()
        self._start(record)

    def purge(self) -> int:
        """Cancel every job that waits without a caller who waits for it; returns how many."""
        waiting = [job for job in self._jobs.values() if job.status is Status.IN_QUEUE and job.options.kept]
        for record in waiting:
            self.cancel(record)
        return len(waiting)

    def counts(self) -> Counts:
        """How many jobs there are."""
        states = [job.status for job in self._jobs.values()]
        return Counts(
            in_queue=states.count(Status.IN_QUEUE),
            in_progress=states.count(Status.IN_PROGRESS),
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
        for job_id in [*self._jobs]:
            self._forget(job_id)

    def _check_taken(self, new: JobRecord) -> None:
        try:
            self._admit(new)
            self._check_room(new)
        except WorkerError as error:
            self._refused(new, error)
            raise

    def _check_room(self, new: JobRecord) -> None:
        under_way = [job for job in self._jobs.values() if not job.over]
        held = sum(job.bytes for job in under_way)
        if len(under_way) >= self._max_under_way or held + new.bytes > self._max_bytes:
            raise Overloaded(
                f"{len(under_way)} jobs are waiting or running, which is all that this worker holds; "
                f"come again in {RETRY_AFTER_S} seconds.",
                details={"retry_after_s": RETRY_AFTER_S},
            )

    def _start(self, record: JobRecord) -> None:
        task = asyncio.get_running_loop().create_task(self._run(record, record.attempt))
        self._running[record.id] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._forget_in(record, record.options.ttl_s)

    async def _run(self, record: JobRecord, attempt: int) -> None:
        loop = asyncio.get_running_loop()

        def advance(progress: Progress) -> None:
            if not record.over and record.attempt == attempt:
                self._advance(record, progress)

        def emit(progress: Progress) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(advance, progress)

        status = Status.FAILED
        answer: AnyAnswer | None = None
        failure: WorkerError | None = None
        try:
            answer = await self._perform(record.payload, record.id, emit, record.caller)
            status = Status.COMPLETED
        except JobTimeout as error:
            status, failure = Status.TIMED_OUT, error
        except JobCancelled as error:
            status, failure = Status.CANCELLED, error
        except WorkerError as error:
            failure = error
        except Exception as error:
            failure = self._unforeseen(error, record.payload)
        if not record.over and record.attempt == attempt:
            self._end(record, status, answer, failure)

    def _advance(self, record: JobRecord, progress: Progress) -> None:
        limit = record.options.execution_timeout_s
        if record.started_at is None and limit is not None:
            error = JobTimeout(
                f"The job ran longer than its executionTimeout of {limit * 1000:g} ms; raise it, or ask for less.",
                field="policy",
            )
            self._limits[record.id] = asyncio.get_running_loop().call_later(
                limit, self._stop, record, Status.TIMED_OUT, error
            )
        record.advance(progress)

    def _stop(self, record: JobRecord, status: Status, error: WorkerError) -> None:
        if not record.over:
            self._running[record.id].cancel(error.code)  # the reason, for whoever keeps the books
            self._end(record, status, None, error)

    def _end(self, record: JobRecord, status: Status, answer: AnyAnswer | None, error: WorkerError | None) -> None:
        record.finish(status, answer, error)
        self._running.pop(record.id, None)
        if limit := self._limits.pop(record.id, None):
            limit.cancel()
        self._completed += status is Status.COMPLETED
        self._failed += status in (Status.FAILED, Status.TIMED_OUT)
        _LOG.info("job %s: %s", record.id, error.code if error else "completed")
        kept = record.options.kept or (record.options.replayed and answer is not None)
        if kept and record.id in self._jobs:
            life = record.created_at + record.options.ttl_s - time.monotonic()
            self._forget_in(record, min(self._retention_s, life))
            self._drop_oldest(but=record)
        else:
            self._forget(record.id)
        self._notify(record)

    def _drop_oldest(self, but: JobRecord) -> None:
        held = sum(job.bytes for job in self._jobs.values())
        if held <= self._max_bytes:
            return
        for job in sorted((job for job in self._jobs.values() if job.over), key=lambda job: job.finished_at or 0.0):
            if held <= self._max_bytes or job is but:
                break
            held -= job.bytes
            self._forget(job.id)

    def _forget_in(self, record: JobRecord, seconds: float) -> None:
        if timer := self._lives.pop(record.id, None):
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._lives[record.id] = loop.call_later(max(0.0, seconds), self._forget, record.id)

    def _forget(self, job_id: str) -> None:
        record = self._jobs.pop(job_id, None)
        if timer := self._lives.pop(job_id, None):
            timer.cancel()
        if record is not None:
            self.cancel(record)
