"""Work that tests of jobs can watch, and inputs and answers for it."""

import asyncio

from tests.asking import an_answer
from tests.waiting import settled
from worker.core.result import AnswerFile, Progress
from worker.wire.request import decode_input


class Work:
    """What is done with each job: it begins when `began` is awaited, and ends as it is told."""

    def __init__(self):
        self.runs = []
        self.stopped = []
        self.go = asyncio.Event()
        self.end = asyncio.Event()
        self.failures = []

    async def __call__(self, job, job_id, emit, caller):
        payload = job.request.params
        self.runs.append(job_id)
        try:
            if payload.get("waits"):
                await self.go.wait()
            emit(Progress("inference", 1, 2))
            if payload.get("hangs"):
                await asyncio.Event().wait()
            if payload.get("lasts"):
                await self.end.wait()
            await settled()
            if self.failures:
                raise self.failures.pop(0)
            return image(payload.get("shown", "image"))
        except asyncio.CancelledError:
            self.stopped.append(job_id)
            raise


def image(words="image"):
    """The answer of a job: one file that holds what was sent."""
    return an_answer(AnswerFile("png", words.encode()))


def asked(**params):
    """A job's input with these parameters."""
    return decode_input({"prompt": "x", **params})
