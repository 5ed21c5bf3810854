"""What this worker has answered lately: the same job delivered twice is drawn once."""

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from worker.core.request import GenerationRequest
from worker.core.result import JobResult

MAX_BYTES = 128 * 2**20


def digest(request: GenerationRequest) -> str:
    """What makes two deliveries the same job, beside the id."""
    text = json.dumps(request.model_dump(), sort_keys=True)  # as ASCII: no text is too broken to be told apart
    return hashlib.sha256(text.encode()).hexdigest()


class JobLedger:
    """Results by (job id, request), for `ttl_s` seconds and within `max_bytes` of pixels; errors are not kept."""

    def __init__(self, ttl_s: float, max_bytes: int = MAX_BYTES) -> None:
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._running: dict[tuple[str, str], asyncio.Future[JobResult]] = {}
        self._finished: OrderedDict[tuple[str, str], tuple[float, JobResult]] = OrderedDict()
        self._held = 0  # bytes of their pixels

    async def once(self, job_id: str, request: GenerationRequest, run: Callable[[], Awaitable[JobResult]]) -> JobResult:
        """The result of this job: remembered, joined if it is running, else made by `run`."""
        key = (job_id, digest(request))
        while True:
            self._expire()
            if key in self._finished:
                return self._finished[key][1]
            if key not in self._running:
                return await self._run(key, run)
            shared = self._running[key]
            try:
                return await asyncio.shield(shared)
            except asyncio.CancelledError:
                # Either this delivery was cancelled, or the one that it waited for: then look again.
                task = asyncio.current_task()
                if (task is not None and task.cancelling()) or not shared.cancelled():
                    raise

    async def _run(self, key: tuple[str, str], run: Callable[[], Awaitable[JobResult]]) -> JobResult:
        future: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        self._running[key] = future
        try:
            result = await run()
        except BaseException as error:
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # seen: nobody may be waiting
            else:
                future.cancel()
            raise
        else:
            future.set_result(result)
            self._finished[key] = (time.monotonic(), result)
            self._held += _size(result)
            self._expire()
            return result
        finally:
            del self._running[key]

    def _expire(self) -> None:
        now = time.monotonic()
        while self._finished:
            key, (finished_at, result) = next(iter(self._finished.items()))
            if now - finished_at < self._ttl_s and self._held <= self._max_bytes:
                break
            del self._finished[key]
            self._held -= _size(result)


def _size(result: JobResult) -> int:
    return sum(item.byte_size for item in result.artifacts)
