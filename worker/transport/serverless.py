"""The RunPod door: job dict in, a dict that always survives the SDK out.

Traps of RunPod's SDK, and what is done about each:

- An answer that its JSON cannot hold is never posted: each is checked, and becomes an error.
- A progress update that comes after the result overwrites it: updates are throttled, and the last step is never told.
- It streams per handler, never per job, and strips errors to their sentence: hence `STREAM_RESULTS`.
- `refresh_worker` is read in a result only: a lost device says it there, or by `on_loss` where answers are streamed.
- What the platform refuses is lost: see `runpod_results.py`, to which this door says what can be posted instead.
- It sleeps while its places are taken: see `runpod_taking.py`, to which this door says when one is free.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

from pydantic import JsonValue

from worker.core.answer import Answer, AnyAnswer
from worker.core.errors import DeviceLost, ResultTooLarge, SourceUnavailable, WorkerError
from worker.core.job_input import JobInput
from worker.core.request import GenerationRequest
from worker.core.result import Emit, Progress
from worker.service.jobs.record import JobOptions, JobRecord
from worker.service.jobs.store import JobStore
from worker.service.usage import request_id
from worker.service.usage.privacy import unforeseen
from worker.transport.job_input import read_input
from worker.transport.progress import encode_progress
from worker.transport.runpod_results import Refusal
from worker.wire.errors import encode_error
from worker.wire.parts import encode_chunks
from worker.wire.request import input_of
from worker.wire.result import encode_answer

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
PROGRESS_EVERY_S = 1.0
# A progress post that arrives after the result would leave the job IN_PROGRESS for ever.
QUIET_BEFORE_END_S = 0.25
_DEEPEST = 200  # levels of an answer: writers of JSON end at more, and one that holds itself has no end

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Encode = Callable[[AnyAnswer], dict[str, JsonValue]]
Send = Callable[[dict[str, Any], dict[str, JsonValue]], None]


# RunPod may deliver a job again while it runs or once it is answered; no other caller ever asks for it.
_DELIVERED = JobOptions(kept=False, replayed=True, redelivered=True)
# What this task has answered. The SDK posts it in the same task, and may be refused.
_last_answer: ContextVar[tuple[GenerationRequest, AnyAnswer] | None] = ContextVar("last_answer", default=None)


class Behind(Protocol):
    """What the door asks of the worker behind it, beside the jobs themselves: its operations."""

    def repeated(self, record: JobRecord) -> AbstractContextManager[None]:
        """Enclose the answer to a job that was delivered again."""
        ...

    async def deliver_elsewhere(
        self, answer: AnyAnswer, request: GenerationRequest, job_id: str, reason: str
    ) -> Answer | None:
        """Return an answer with its files in the bucket or on the volume, or None."""
        ...


class ServerlessDoor:
    """The handler that RunPod's SDK calls for every job."""

    def __init__(
        self,
        job_store: JobStore,
        behind: Behind,
        *,
        concurrency: int,
        encode: Encode = encode_answer,
        send_progress: Send | None = None,
        on_loop_start: Callable[[], None] = lambda: None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._job_store = job_store
        self._behind = behind
        self._concurrency = concurrency
        self._encode = encode
        self._send_progress = send_progress
        self._on_loop_start = on_loop_start
        self._on_loss = on_loss
        self.on_generated: Callable[[str], None] = lambda job_id: None  # called with its id once a job needs no place
        self._started = False
        self._lost = False

    def concurrency(self, current: int) -> int:
        """Return the concurrency: constant, since every change waits until no job is in flight; 0 once lost.

        This is RunPod's concurrency_modifier. The SDK calls it first when its loop is up, so the background warm-up
        starts here too.
        """
        if not self._started:
            self._started = True
            asyncio.get_running_loop().call_later(0.1, self._on_loop_start)
        return 0 if self._lost else self._concurrency

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """Answer one job. Raises nothing but CancelledError, and returns plain JSON."""
        job_id = _id_of(job)
        answer = await self._answered(job, self._encode, lambda error: self._failed(error, job_id))
        return _survivable(answer, job_id)

    async def stream(self, job: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one job in chunks of at most 1 MB, for an endpoint that streams. The SDK posts each as it comes.

        It makes all results of such a handler a list, and of a failure only the sentence: the rest goes first.
        """
        job_id = _id_of(job)
        answered = self._answered(job, encode_chunks, lambda error: self._failed_chunks(error, job_id), streams=True)
        for chunk in await answered:
            yield _survivable(chunk, job_id)

    async def elsewhere(self, job_id: str, refusal: Refusal) -> dict[str, Any] | None:
        """Return the answer of this task with its files in the bucket or on the volume; None if that cannot be."""
        if (answered := _last_answer.get()) is None:
            return None
        request, answer = answered
        reason = f"RunPod refused the answer of {refusal.size / 1e6:.3g} MB (HTTP {refusal.status})."
        moved = await self._behind.deliver_elsewhere(answer, request, job_id, reason)
        return None if moved is None else _survivable(self._encode(moved), job_id)

    def error(self, job_id: str, refusal: Refusal) -> dict[str, Any]:
        """Return the error that is posted in the place of a refused result."""
        size = f"the result of {refusal.size / 1e6:.3g} MB"
        if refusal.for_now:
            error: WorkerError = SourceUnavailable(f"RunPod could not take {size}; send the job again.")
        else:
            error = ResultTooLarge(
                f"RunPod refused {size} (HTTP {refusal.status}); ask for fewer or smaller images, or for "
                "output.format jpeg, or let the operator configure a bucket or lower MAX_RESPONSE_MB.",
                details={"bytes": refusal.size, "status": refusal.status},
            )
        return dict(encode_error(error, job_id))

    async def _answered(
        self,
        job: dict[str, Any],
        encode: Callable[[AnyAnswer], T],
        failed: Callable[[WorkerError], T],
        *,
        streams: bool = False,
    ) -> T:
        job_id = _id_of(job)
        request_id.current.set(request_id.accept(job_id))
        request_id.traceparent.set(None)
        job_input = read_input(input_of(job), streams=streams)
        progress = _Throttle(job, self._send_progress if _wants_progress(job_input) else None)
        try:
            performed = await self._perform(job_input, job_id, progress)
            if isinstance(job_input.request, GenerationRequest):
                _last_answer.set((job_input.request, performed))
            answer = encode(performed)
        except WorkerError as error:
            answer = failed(error)
        except Exception as error:
            answer = failed(unforeseen(error, job_input.request))
        self.on_generated(job_id)  # whatever it was that needed no pixels
        await progress.settle()
        return answer

    async def _perform(self, job_input: JobInput, job_id: str, progress: Emit) -> AnyAnswer:
        record = self._job_store.submit(job_input, job_id, _DELIVERED)
        again = record.over or record.callers > 1
        if not again:
            record.follow(progress)
            record.turn.on_generated = partial(self.on_generated, job_id)
        try:
            with self._behind.repeated(record) if again else nullcontext():
                await record.wait()
                return record.outcome()
        finally:
            self._job_store.leave(record)
            if record.over:  # this delivery may have been cancelled, and the device must be free then
                await self._job_store.settled(record)

    def _failed(self, error: WorkerError, job_id: str) -> dict[str, JsonValue]:
        answer = encode_error(error, job_id)
        if isinstance(error, DeviceLost):
            self._lost = True
            self._on_loss()
            answer["refresh_worker"] = True
        return answer

    def _failed_chunks(self, error: WorkerError, job_id: str) -> list[dict[str, JsonValue]]:
        details = self._failed(error, job_id)
        details.pop("refresh_worker", None)  # read by the SDK in a result only; `on_loss` sees to it
        return [details, {"error": details.pop("error")}]


def _id_of(job: Mapping[str, Any]) -> str:
    return str(job.get("id") or "local")


def _wants_progress(job_input: JobInput) -> bool:
    return not isinstance(job_input.request, GenerationRequest) or job_input.request.progress


class _Throttle:
    """Progress at most once a second, in order, and none in the last moments before the result."""

    def __init__(self, job: dict[str, Any], send: Send | None) -> None:
        self._job, self._send = job, send
        self._last = time.monotonic()
        self._latest: Progress | None = None
        self._sent = False
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        finished = progress.total > 0 and progress.step >= progress.total
        with self._lock:
            self._latest = progress = progress.after(self._latest)
            now = time.monotonic()
            if self._send is None or finished or now - self._last < PROGRESS_EVERY_S:
                return
            self._last, self._sent = now, True
            try:
                self._send(self._job, encode_progress(progress))
            except Exception as error:  # a progress update must never fail its job
                _LOG.warning("progress was not sent: %s", type(error).__name__)

    async def settle(self) -> None:
        """Wait until the last update has surely arrived."""
        with self._lock:
            self._send = None  # the engine's thread may still hold this object
        quiet = QUIET_BEFORE_END_S - (time.monotonic() - self._last)
        if self._sent and quiet > 0:
            await asyncio.sleep(quiet)


def _survivable(answer: Mapping[str, JsonValue], job_id: str) -> dict[str, Any]:
    """Return `answer` if it can be posted as JSON; else an error that can."""
    try:
        _check_json(answer)
    except (TypeError, ValueError, RecursionError) as error:
        return dict(encode_error(unforeseen(error), job_id))
    return dict(answer) or {"ok": True}


def _check_json(answer: object) -> None:
    """Raise TypeError or ValueError for what cannot be posted as JSON. Long texts cost nothing: images are ASCII."""
    values = [answer]
    for _ in range(_DEEPEST):  # level by level: a call for each of an answer's hundred values takes three times as long
        inner: list[object] = []
        for value in values:
            kind = type(value)
            if kind is int or kind is bool or value is None:
                continue
            if isinstance(value, str):
                if not value.isascii():
                    value.encode("utf-8")  # half a surrogate pair would be an error where the SDK posts it
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise ValueError("a number is not finite")
            elif isinstance(value, Mapping):
                inner += map(str, value)
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            elif not isinstance(value, int):
                raise TypeError(f"{kind.__name__} is no JSON")
        if not inner:
            return
        values = inner
    raise RecursionError("it is nested too deep for JSON")
