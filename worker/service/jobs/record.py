"""One submitted job: its state, its followers and its outcome."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from weakref import WeakSet

from pydantic import BaseModel

from worker.core.answer import AnyAnswer
from worker.core.errors import JobCancelled, WorkerError
from worker.core.job_input import JobInput
from worker.core.result import Emit, Progress
from worker.core.turn import Turn

MAX_UNREAD = 100
_DEEPEST = 24  # neither JSON nor our own types are nested more
DAY_S = 86_400.0


class Status(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Options that a caller sets beside the job itself."""

    execution_timeout_s: float | None = None  # of work on the job; waiting in a queue is none
    ttl_s: float = DAY_S  # of the whole job, its answer included
    webhook: str | None = None
    request_id: str | None = None  # of the request that handed the job in
    received_at: float | None = None  # when its first byte came, on time.monotonic's clock; by default now
    kept: bool = True  # True if the answer can be fetched later; else the job belongs to its waiting callers
    replayed: bool = False  # True if the answer is kept, all the same, for a caller who sends the same job again
    redelivered: bool = False  # True if the same id with another input is another job (as from a queue), not an error


class JobRecord:
    """The record of one job. Only its store changes it; it is read and changed on the event loop only."""

    def __init__(self, job_id: str, job: JobInput, options: JobOptions, caller: str | None = None) -> None:
        self.id = job_id
        self.caller = caller
        self.job = job
        self.options = options
        self.status = Status.QUEUED
        self.attempt = 1
        self.created_at = time.monotonic()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.progress: Progress | None = None
        self.answer: AnyAnswer | None = None
        self.error: WorkerError | None = None
        self.bytes = weight(job)
        self.callers = 0
        self.work: asyncio.Task[None] | None = None
        self.turn = Turn(caller)  # of the present attempt
        self._answer_taken = False
        self._ended = asyncio.Event()
        self._unread: deque[Progress] = deque(maxlen=MAX_UNREAD)
        self._followers: list[Emit] = []
        self._feeds: WeakSet[_Feed] = WeakSet()  # one is gone with its reader

    @property
    def over(self) -> bool:
        """True once this job has ended, in whatever way."""
        return self.status not in (Status.QUEUED, Status.RUNNING)

    @property
    def can_be_retried(self) -> bool:
        """True if the job ended in a way that another try may change."""
        return self.status in (Status.FAILED, Status.TIMED_OUT)

    @property
    def delay_ms(self) -> int:
        """Milliseconds until work on it began."""
        return _milliseconds(self.created_at, self.started_at or self.finished_at)

    @property
    def execution_ms(self) -> int:
        """Milliseconds of work on it."""
        return _milliseconds(self.started_at, self.finished_at) if self.started_at is not None else 0

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the job is over. Return False if that takes longer than `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self.over

    def outcome(self) -> AnyAnswer:
        """Return the answer of a job that is over. Raises the WorkerError that it ended with.

        Each caller gets a copy of that error: one that is kept would hold the frames of whoever raised it last.
        """
        if self.answer is None:
            raise copy(self.error) if self.error else JobCancelled("The job was cancelled.")
        return self.answer

    def watch(self) -> AsyncGenerator[Progress, None]:
        """Yield this job's progress from this call on, until it is over. A slow reader misses the oldest updates."""
        feed = _Feed(self.progress)
        self._feeds.add(feed)
        return self._read(feed)

    def follow(self, emit: Emit) -> None:
        """Call `emit` with all progress from now on, at once and in the thread in which it happens."""
        self._followers.append(emit)

    def tell(self, progress: Progress) -> None:
        """Tell followers of progress. Safe in any thread."""
        for emit in (*self._followers,):
            emit(progress)

    async def _read(self, feed: "_Feed") -> AsyncGenerator[Progress, None]:
        while True:
            while feed.items:
                yield feed.items.popleft()
            if self.over:
                return
            feed.news.clear()
            await feed.news.wait()

    def take_unread(self) -> list[Progress]:
        """Return the updates since the last call, each once."""
        updates = [*self._unread]
        self._unread.clear()
        return updates

    def take_answer(self) -> AnyAnswer | None:
        """Return the answer once; None before and afterwards."""
        taken, self._answer_taken = self._answer_taken, self.answer is not None
        return None if taken else self.answer

    def advance(self, progress: Progress) -> None:
        """Note progress. The first update sets the job to running."""
        if self.started_at is None:
            self.started_at = time.monotonic()
            self.status = Status.RUNNING
        self.progress = progress.after(self.progress)
        if self._unread and self._unread[-1].preview is not None:  # of previews only the last is worth its memory
            self._unread[-1] = replace(self._unread[-1], preview=None)
        self._unread.append(progress)
        for feed in self._feeds:
            feed.items.append(progress)
            feed.news.set()

    def finish(self, status: Status, answer: AnyAnswer | None, error: WorkerError | None) -> None:
        """Enter a final state. Of the error its words are kept, and not the frames that it was raised through."""
        self.status, self.answer = status, answer
        self.error = None if error is None else copy(error)
        self.finished_at = time.monotonic()
        if status is Status.COMPLETED:
            self.job = replace(self.job, request=None)  # only a failed job can be retried
            self.started_at = self.started_at or self.created_at
        self.bytes = weight(self.job) + weight(answer)
        self._ended.set()
        for feed in self._feeds:
            feed.news.set()

    def begin_anew(self) -> None:
        """Enter the queue again."""
        self.attempt += 1
        self.status, self.answer, self.error = Status.QUEUED, None, None
        self.created_at, self.started_at, self.finished_at = time.monotonic(), None, None
        self.progress = None
        self._unread.clear()
        self._ended.clear()


class _Feed:
    """One reader's view of a job's progress."""

    def __init__(self, first: Progress | None) -> None:
        self.items: deque[Progress] = deque([first] if first else [], maxlen=MAX_UNREAD)
        self.news = asyncio.Event()


def weight(value: object) -> int:
    """Estimate the bytes that a value holds; its texts and its files decide."""
    size, parts = 0, [value]
    for _ in range(_DEEPEST):  # level by level: a call for each of a job's hundred values takes five times as long
        inner: list[object] = []
        for part in parts:
            size += 64
            kind = type(part)
            if kind is str or kind is bytes:
                size += len(part)  # type: ignore[arg-type]
            elif kind in _SMALL:
                continue
            elif isinstance(part, str | bytes):
                size += len(part)
            elif isinstance(part, dict | MappingProxyType):
                inner += part
                inner += part.values()
            elif isinstance(part, list | tuple):
                inner += part
            else:
                inner += _values(part)
        if not inner:
            break
        parts = inner
    return size


_SMALL = frozenset({int, float, bool, type(None)})


def _values(value: object) -> Iterable[object]:
    """Return what the fields of a model or a dataclass hold; nothing of anything else."""
    names = _field_names(type(value))
    return [getattr(value, name) for name in names]


def _field_names(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of a model or a dataclass; none of anything else."""
    names = _FIELD_NAMES.get(kind)
    if names is None:
        listed = kind.model_fields if issubclass(kind, BaseModel) else ()
        names = tuple(item.name for item in fields(kind)) if is_dataclass(kind) else tuple(listed)
        _FIELD_NAMES[kind] = names
    return names


_FIELD_NAMES: dict[type, tuple[str, ...]] = {}


def _milliseconds(start: float, end: float | None) -> int:
    return round(((time.monotonic() if end is None else end) - start) * 1000)
