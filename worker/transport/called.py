"""The door of a worker that is called as an object: a Modal class, a Ray replica. A job's dict in, plain JSON out.

A job is `{"id": …, "input": …}`, as RunPod's queue has it, and an answer is the same JSON as at every other door. What
its caller sees on the way are updates: `{"alive": true}` at once and whenever there was nothing to say for a while,
`{"progress": …}` any number of times, then `{"answer": …}` once. Who stops reading takes the job back, and it ends at
its next step.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from pydantic import JsonValue

from worker.core.errors import WorkerError
from worker.core.request import GenerationRequest
from worker.core.training import TrainingRequest
from worker.service.jobs.record import JobOptions, JobRecord
from worker.service.jobs.store import JobStore
from worker.service.usage import request_id
from worker.service.usage.privacy import unforeseen
from worker.transport.job_input import read_input
from worker.transport.progress import encode_progress
from worker.wire.errors import encode_error
from worker.wire.request import input_of
from worker.wire.result import encode_answer

Update = dict[str, JsonValue]

ALIVE_S = 5.0
"""The longest silence of a worker that has a job."""
# A gateway that lost sight of a job asks again under the same id, and gets the same answer.
_DELIVERED = JobOptions(kept=False, replayed=True, redelivered=True)


class CalledDoor:
    """The jobs of a worker whose caller holds the object itself."""

    def __init__(self, job_store: JobStore) -> None:
        self._job_store = job_store

    async def stream(self, job: Mapping[str, Any]) -> AsyncGenerator[Update, None]:
        """Yield a job's updates, its answer last. Raises nothing; a failure is an answer with an `error`.

        Once the reader closes this, or its task is cancelled, the job has ended before that returns.
        """
        job_id = str(job.get("id") or "call")
        request_id.current.set(request_id.accept(job_id))
        request_id.traceparent.set(None)
        job_input = read_input(input_of(job))
        try:
            record = self._job_store.submit(job_input, job_id, _DELIVERED)
        except WorkerError as error:
            yield {"answer": encode_error(error, job_id)}
            return
        request = job_input.request
        told = isinstance(request, TrainingRequest) or (isinstance(request, GenerationRequest) and request.progress)
        try:
            yield {"alive": True}
            async with aclosing(_updates(record)) as updates:
                async for update in updates:
                    if told or "alive" in update:
                        yield update
            yield {"answer": _answer_of(record)}
        finally:
            self._job_store.leave(record)
            if record.over:
                await self._job_store.settled(record)


async def _updates(record: JobRecord) -> AsyncGenerator[Update, None]:
    """Yield a job's progress until it is over, and signs of life in between."""
    async with aclosing(record.watch()) as feed:
        coming = asyncio.ensure_future(anext(feed, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=ALIVE_S)
                if not done:
                    yield {"alive": True}
                    continue
                if (progress := coming.result()) is None:
                    break
                yield {"progress": encode_progress(progress)}
                coming = asyncio.ensure_future(anext(feed, None))
        finally:
            coming.cancel()
            await asyncio.wait({coming})
    await record.wait()


def _answer_of(record: JobRecord) -> dict[str, JsonValue]:
    try:
        return encode_answer(record.outcome())
    except WorkerError as error:
        return encode_error(error, record.id)
    except Exception as error:
        return encode_error(unforeseen(error, record.job.request), record.id)
