"""One job that was handed in: where it stands, who follows it, and what came of it."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from hashlib import sha256
from weakref import WeakSet

from pydantic import JsonValue

from worker.core.answer import AnyAnswer
from worker.core.errors import JobCancelled, WorkerError
from worker.core.result import Progress

MAX_UNREAD = 100
DAY_S = 86_400.0


class Status(StrEnum):
    """Where a job stands, in RunPod's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a caller sets beside the job itself."""

    execution_timeout_s: float | None = None  # from the first sign of work on
    ttl_s: float = DAY_S  # of the whole job, its answer included
    webhook: str | None = None
    request_id: str | None = None  # of the request that handed the job in
    kept: bool = True  # whether the answer can be asked for later; else the job is its waiting callers'
    replayed: bool = False  # whether, all the same, the answer is kept for whoever sends the same job again


class JobRecord:
    """Changed by its store only, and on the event loop only, where it is read too."""

    def __init__(self, job_id: str, payload: JsonValue, options: JobOptions, caller: str | None = None) -> None:
        self.id = job_id
        self.caller = caller
        self.payload: JsonValue = payload
        self.options = options
        self.digest = digest(payload)
        self.status = Status.IN_QUEUE
        self.attempt = 1
        self.created_at = time.monotonic()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.progress: Progress | None = None
        self.answer: AnyAnswer | None = None
        self.error: WorkerError | None = None
        self.bytes = _weight(payload)
        self.callers = 0
        self._answer_taken = False
        self._ended = asyncio.Event()
        self._unread: deque[Progress] = deque(maxlen=MAX_UNREAD)
        self._feeds: WeakSet[_Feed] = WeakSet()  # one is gone with its reader

    @property
    def over(self) -> bool:
        """Whether this job has ended, in whatever way."""
        return self.status not in (Status.IN_QUEUE, Status.IN_PROGRESS)

    @property
    def delay_ms(self) -> int:
        """How long it waited until work on it began."""
        return _milliseconds(self.created_at, self.started_at or self.finished_at)

    @property
    def execution_ms(self) -> int:
        """How long it has been worked on."""
        return _milliseconds(self.started_at, self.finished_at) if self.started_at is not None else 0

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the job is over; False when that takes longer than `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self.over

    def outcome(self) -> AnyAnswer:
        """The answer of a job that is over. Raises the WorkerError that it ended with."""
        if self.answer is None:
            raise self.error or JobCancelled("The job was cancelled.")
        return self.answer

    def watch(self) -> AsyncGenerator[Progress, None]:
        """What happens with this job from this call on, until it is over. A slow reader misses the oldest."""
        feed = _Feed(self.progress)
        self._feeds.add(feed)
        return self._read(feed)

    async def _read(self, feed: "_Feed") -> AsyncGenerator[Progress, None]:
        while True:
            while feed.items:
                yield feed.items.popleft()
            if self.over:
                return
            feed.news.clear()
            await feed.news.wait()

    def take_unread(self) -> list[Progress]:
        """What happened since this was last asked, each update once."""
        found = [*self._unread]
        self._unread.clear()
        return found

    def take_answer(self) -> AnyAnswer | None:
        """The answer, once; None before and afterwards."""
        taken, self._answer_taken = self._answer_taken, self.answer is not None
        return None if taken else self.answer

    def advance(self, progress: Progress) -> None:
        """Take note of progress; the first makes the job one that is worked on."""
        if self.started_at is None:
            self.started_at = time.monotonic()
            self.status = Status.IN_PROGRESS
        self.progress = progress.after(self.progress)
        if self._unread and self._unread[-1].preview is not None:  # of pictures only the last is worth its memory
            self._unread[-1] = replace(self._unread[-1], preview=None)
        self._unread.append(progress)
        for feed in self._feeds:
            feed.items.append(progress)
            feed.news.set()

    def finish(self, status: Status, answer: AnyAnswer | None, error: WorkerError | None) -> None:
        """Enter a final state."""
        self.status, self.answer, self.error = status, answer, error
        self.finished_at = time.monotonic()
        if status is Status.COMPLETED:
            self.payload = None  # only what failed can be tried again
            self.started_at = self.started_at or self.created_at
        self.bytes = _weight(self.payload) + _weight(answer)
        self._ended.set()
        for feed in self._feeds:
            feed.news.set()

    def begin_anew(self) -> None:
        """Enter the queue again."""
        self.attempt += 1
        self.status, self.answer, self.error = Status.IN_QUEUE, None, None
        self.created_at, self.started_at, self.finished_at = time.monotonic(), None, None
        self.progress = None
        self._unread.clear()
        self._ended.clear()


class _Feed:
    """One reader's view of a job's progress."""

    def __init__(self, first: Progress | None) -> None:
        self.items: deque[Progress] = deque([first] if first else [], maxlen=MAX_UNREAD)
        self.news = asyncio.Event()


def digest(payload: JsonValue) -> str:
    """What makes two payloads the same."""
    return sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _weight(value: object) -> int:
    """About how many bytes a value holds; its texts and its files decide."""
    if isinstance(value, str | bytes):
        return 64 + len(value)
    if isinstance(value, Mapping):
        return 64 + sum(64 + len(key) + _weight(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return 64 + sum(map(_weight, value))
    if is_dataclass(value):
        return 64 + sum(_weight(getattr(value, item.name)) for item in fields(value))
    return 32


def _milliseconds(start: float, end: float | None) -> int:
    return round(((time.monotonic() if end is None else end) - start) * 1000)
