"""Telemetry: each operation is noted once, at its end, for metrics, traces and the usage log.

`Operations` opens an operation (`Telemetry.operation`), `accepted` adds its job, and `MeteredBackend` adds the result.
At the end one `Record` of the values measured anyway goes to every observer. Nothing is counted while a job runs, so
that nothing can slow it down or fail it. All observers read the same record, so they agree with each other and with
the caller's result.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Protocol

from worker.core.answer import Answer
from worker.core.errors import JobCancelled, WorkerError
from worker.core.job import Job
from worker.core.ports import Backend
from worker.core.result import Emit, JobResult, Usage
from worker.core.version import VersionChoice
from worker.service.usage.record import OK, STATUS, Record
from worker.service.usage.timeline import Timeline
from worker.store.refs import parse_reference

_LOG = logging.getLogger(__name__)
UNREGISTERED = "unregistered"
# Actions on one model; the others are of the worker.
_OF_A_MODEL = (
    *("generate", "schema", "inspect", "plan", "preload", "unload", "train", "train_plan"),
    *("report", "promote", "rollback", "split", "pairs", "choose", "golden"),
)
_MAX_ID = 200
MAX_DENIED_PER_MINUTE = 60


class Observer(Protocol):
    """A receiver of records."""

    def note(self, record: Record) -> None:
        """Note a record. Called on the event loop, so it must not wait for anything."""
        ...

    def close(self) -> None:
        """Return once everything is written or sent. Blocking."""
        ...


class Operation:
    """An operation under way, with the facts known so far."""

    def __init__(self, job_id: str, request_id: str, caller: str | None, traceparent: str | None) -> None:
        self.job_id = job_id
        self.request_id = request_id
        self.caller = caller
        self.traceparent = traceparent
        self.action = "unknown"
        self.named: object = None
        self.job: Job | None = None
        self.choice: VersionChoice | None = None
        self.result: JobResult | None = None
        self.recipe: str | None = None
        self.usage: Usage | None = None
        self.encode_s = 0.0
        self.at, self.began = time.time(), time.monotonic()

    def asks(self, action: str, model: object) -> None:
        """Note the action and model once they were read; `model` as the caller names it, None for the default."""
        self.action, self.named = action, model


_current: ContextVar[Operation | None] = ContextVar("operation", default=None)


class Telemetry:
    """Hands records of operations to `observers`. `registered` knows the id in models.yaml of a name or None."""

    def __init__(self, registered: Callable[[str | None], str | None], observers: Sequence[Observer] = ()) -> None:
        self._registered = registered
        self.timeline = Timeline()
        self._observers = observers
        self._denied: dict[int, int] = {}  # how many, of the last minute that had any

    @contextmanager
    def operation(
        self, job_id: str, request_id: str = "-", caller: str | None = None, traceparent: str | None = None
    ) -> Iterator[Operation]:
        """Enclose one operation and record its outcome. Swallows nothing and raises nothing of its own."""
        operation = Operation(job_id, request_id, caller, traceparent)
        token = _current.set(operation)
        outcome = WorkerError.code
        try:
            yield operation
            outcome = OK
        except WorkerError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError as error:
            outcome = _reason(error)
            raise
        finally:
            _current.reset(token)
            self._notify(self._record(operation, outcome))

    def refuse(self, job_id: str, request_id: str, caller: str | None, error: WorkerError) -> None:
        """Record a job that was refused before its input was read."""
        with suppress(WorkerError), self.operation(job_id, request_id, caller) as operation:
            operation.asks("generate", UNREGISTERED)
            raise error

    def deny(self, request_id: str, caller: str | None, error: WorkerError) -> None:
        """Record a request that was turned away at the door: without a key, or with one that may not do this.

        Whoever knocks without end fills no disk: of one minute only the first are recorded.
        """
        minute = int(time.monotonic() // 60)
        self._denied = {minute: self._denied.get(minute, 0) + 1}
        if self._denied[minute] > MAX_DENIED_PER_MINUTE:
            return
        if self._denied[minute] == MAX_DENIED_PER_MINUTE:
            _LOG.warning("%d requests were denied within a minute; further ones are not recorded", self._denied[minute])
        with suppress(WorkerError), self.operation("", request_id, caller) as operation:
            operation.asks("access", None)
            raise error

    def close(self) -> None:
        """Return once all observers have written and sent their records. Blocking."""
        for observer in self._observers:
            observer.close()

    def _record(self, operation: Operation, outcome: str) -> Record:
        job, result = operation.job, operation.result
        return Record(
            action=operation.action,
            job_id=operation.job_id[:_MAX_ID],
            request_id=operation.request_id,
            caller=operation.caller,
            traceparent=operation.traceparent,
            outcome=outcome,
            at=operation.at,
            began=operation.began,
            ended=time.monotonic(),
            model=self._label(operation),
            source=job.call.spec.source.reference.partition("?")[0] if job else None,
            task=job.call.task.value if job else None,
            accepted_at=job.accepted_at if job else None,
            timings=result.timings if result else None,
            usage=result.usage if result else operation.usage,
            loras=len(result.loras) if result else 0,
            encode_s=operation.encode_s,
            adapters=tuple(filter(None, (_public(each.spec.model) for each in job.adapters))) if job else (),
            choice=operation.choice,
        )

    def _label(self, operation: Operation) -> str:
        if operation.action not in _OF_A_MODEL:
            return ""
        name = operation.recipe or (operation.job.call.spec.id if operation.job else operation.named)
        if name is not None and not isinstance(name, str):
            return UNREGISTERED
        return self._registered(name) or UNREGISTERED

    def _notify(self, record: Record) -> None:
        self.timeline.note(record)
        for observer in self._observers:
            try:
                observer.note(record)
            except Exception as error:  # no job fails because of telemetry
                _LOG.warning("%s took no note of an operation: %s", type(observer).__name__, type(error).__name__)


def chosen(choice: VersionChoice) -> None:
    """Add the version that the job is served by to the operation under way, before anything of it is looked at."""
    if (operation := _current.get()) is not None:
        operation.choice = choice


def accepted(job: Job) -> None:
    """Add the accepted job to the operation under way, before the job waits for anything."""
    if (operation := _current.get()) is not None:
        operation.job = job


def stepped(recipe: str, so_far: JobResult) -> None:
    """Add to the operation under way that it is of a recipe, and what all of its steps so far came to."""
    if (operation := _current.get()) is not None:
        operation.recipe, operation.result = recipe, so_far


def compared(result: JobResult) -> None:
    """Add to the operation under way what all images of a comparison came to; they are of several versions."""
    if (operation := _current.get()) is not None:
        operation.result, operation.choice = result, None


def trained(usage: Usage) -> None:
    """Add what a training used to the operation under way, whatever became of it."""
    if (operation := _current.get()) is not None:
        operation.usage = usage


def delivered(answer: Answer) -> None:
    """Add the answer's encoding time to the operation under way."""
    if (operation := _current.get()) is not None:
        operation.encode_s = answer.encode_s


class MeteredBackend:
    """A backend that adds a price to results, and each result to the operation under way.

    `usd_per_hour` is the price of an hour of the device; None leaves results without a price.
    """

    def __init__(self, backend: Backend, usd_per_hour: float | None = None) -> None:
        self._backend = backend
        self._usd_per_hour = usd_per_hour

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job` to its result."""
        result = await self._backend.generate(job, emit)
        if self._usd_per_hour is not None:
            cost = result.usage.gpu_seconds / 3600 * self._usd_per_hour
            result = replace(result, usage=replace(result.usage, cost_usd=cost))
        if (operation := _current.get()) is not None:
            operation.result = result
        return result


def _reason(error: asyncio.CancelledError) -> str:
    """Return the code that a task was cancelled with; without one the caller cancelled."""
    code = error.args[0] if error.args else None
    return code if isinstance(code, str) and code in STATUS else JobCancelled.code


def _public(reference: str) -> str | None:
    """Return an adapter's reference on the Hub or CivitAI; None of a link or path: those are the caller's affair."""
    try:
        source = parse_reference(reference)
    except WorkerError:
        return None
    return None if source.is_local or source.scheme == "url" else source.reference.partition("?")[0]
