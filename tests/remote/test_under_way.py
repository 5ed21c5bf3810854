"""The one bracket around a job that another machine has: what ends it, and what happens there then."""

import asyncio
from dataclasses import replace

import pytest

from tests.fakes.engine import make_context
from worker.core.errors import EngineFailure, JobTimeout, Unreachable
from worker.core.turn import StopSignal
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.under_way import UnderWay

GONE = Unreachable("The worker does not answer.")


@pytest.fixture
async def job(tmp_path):
    return await make_context(tmp_path).accept(width=64, height=64)


class There:
    """A replica that hears what is taken back."""

    def __init__(self):
        self.taken_back = []
        self.jobs = UnderWay(self.take_back)

    async def take_back(self, id):
        await asyncio.sleep(0)
        self.taken_back.append(id)

    async def has(self, job, end):
        async with self.jobs.bracket(job, "key"):
            self.jobs["key"] = "id"
            if isinstance(end, Exception):
                raise end
            await end


async def nothing():
    pass


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (nothing(), None),
        (EngineFailure("It broke."), None),
        (JobTimeout("Its own word."), None),
        (NotTaken(GONE), None),
        (LostSight(GONE), "id"),
    ],
    ids=["answered", "failed", "timed out there", "not taken", "lost sight of"],
)
async def test_a_job_is_remembered_only_while_it_has_to_be_asked_for(job, end, kept):
    there = There()
    try:
        await there.has(job, end)
    except (EngineFailure, JobTimeout, NotTaken, LostSight) as error:
        assert error is end
    await there.jobs.close(60)
    assert (there.jobs["key"], there.taken_back) == (kept, [])


async def test_at_its_deadline_and_when_nobody_waits_it_is_taken_back(job):
    late = There()
    with pytest.raises(JobTimeout, match="timeout_s"):
        await late.has(replace(job, stop=StopSignal(0.01)), asyncio.Event().wait())
    left = There()
    waiting = asyncio.ensure_future(left.has(job, asyncio.Event().wait()))
    while left.jobs["key"] is None:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for there in (late, left):
        await there.jobs.close(60)
        assert (there.jobs["key"], there.taken_back) == (None, ["id"])
