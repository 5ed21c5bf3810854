"""The door of a worker that is called as an object: a Modal class, a Ray replica. A job's dict in, plain JSON out.

A job is `{"id": …, "input": …}`, as RunPod's queue has it, and an answer is the same JSON as at every other door. What
its caller sees on the way are updates: `{"progress": …}` any number of times, then `{"answer": …}` once. Who stops
reading takes the job back, and it ends at its next step.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import JsonValue

from worker.core.errors import WorkerError
from worker.core.request import GenerationRequest
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
        try:
            if isinstance(job_input.request, GenerationRequest) and job_input.request.progress:
                async for progress in record.watch():
                    yield {"progress": encode_progress(progress)}
            await record.wait()
            yield {"answer": _answer_of(record)}
        finally:
            self._job_store.leave(record)
            if record.over:
                await self._job_store.settled(record)


def _answer_of(record: JobRecord) -> dict[str, JsonValue]:
    try:
        return encode_answer(record.outcome())
    except WorkerError as error:
        return encode_error(error, record.id)
    except Exception as error:
        return encode_error(unforeseen(error, record.job.request), record.id)
