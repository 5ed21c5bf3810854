"""Answers without a door: to one input, as JSON on both sides; and made up."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from worker.app.build import Worker
from worker.core.answer import Answer
from worker.core.model import Task
from worker.core.result import AnswerFile, Emit, Reproduction, Timings, Usage, ignore_progress
from worker.transport.job_input import read_input
from worker.wire.result import encode_answer


async def perform(
    worker: Worker, payload: object, job_id: str = "job", emit: Emit = ignore_progress, caller: str | None = None
) -> dict[str, Any]:
    """Answer one job's input. Raises WorkerError."""
    return encode_answer(await worker.operations.perform(read_input(payload), job_id, emit, caller))


def an_answer(*files: AnswerFile, prompt: str = "x", seeds: tuple[int, ...] = (1,), **facts: Any) -> Answer:
    """Make up the answer of a generation with these files."""
    return Answer(
        files=files,
        format=files[0].format,
        seeds=seeds,
        prompt=prompt,
        **{
            "width": 64,
            "height": 64,
            "model": "m",
            "revision": None,
            "task": Task.TEXT_TO_IMAGE,
            "parameters": {},
            "loras": (),
            "timings": Timings(),
            "usage": Usage(0, 1, 1, 0, 0),
            "reproduce": Reproduction("m", (), {}, {}),
            **facts,
        },
    )


T = TypeVar("T")
_LOOP = asyncio.Runner()


def on_one_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on this process's one loop for tests that are not asynchronous themselves.

    A worker lives on one loop. With a new one for each job, what its threads tell the loop of an earlier job is lost:
    then a slot that was to be free can stay taken.
    """
    return _LOOP.run(work)
