"""Jobs from RunPod's queue, taken by the SDK's own loops: when the next one is asked for, and how many."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pytest
from runpod.serverless.modules import rp_scale

from tests.waiting import until_true
from worker.transport.runpod_taking import Places, taking


class Queue:
    """A queue that never ends, in front of a worker with `most` places whose jobs do as they are told."""

    def __init__(self, monkeypatch, most):
        self.asked, self.taken, self.slept, self.most = [], [], [], most
        self.generated, self.posted = defaultdict(asyncio.Event), defaultdict(asyncio.Event)
        progress = rp_scale.JobsProgress()
        monkeypatch.setattr(rp_scale, "get_job", None)
        monkeypatch.setattr(rp_scale.log, "level", "ERROR")
        monkeypatch.setattr(rp_scale, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": self._sleep}))
        self.places = Places(lambda: self.most, lambda: [job.id for job in progress])
        told = self.places.told(most)
        self.scaler = rp_scale.JobScaler({"concurrency_modifier": lambda current: told})
        self.scaler.jobs_fetcher, self.scaler.jobs_handler = taking(self._give, self.places), self._work

    async def _sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(seconds)

    async def _give(self, session, number):
        self.asked.append(number)
        jobs = [{"id": f"job-{len(self.taken) + index}", "input": {}} for index in range(number)]
        self.taken += [job["id"] for job in jobs]
        return jobs

    async def _work(self, session, config, job):
        await self.generated[job["id"]].wait()
        self.places.leave(job["id"])
        await self.posted[job["id"]].wait()

    async def __aenter__(self):
        self.tasks = [asyncio.create_task(loop(None)) for loop in (self.scaler.get_jobs, self.scaler.run_jobs)]
        return self

    async def __aexit__(self, *_):
        tasks = [*self.tasks, *self.scaler.jobs_tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rp_scale.JobsProgress().clear()


async def test_the_next_job_is_taken_once_one_is_generated_and_not_only_once_it_is_posted(monkeypatch):
    async with Queue(monkeypatch, most=2) as queue:
        await until_true(lambda: len(queue.taken) == 2)
        assert await queue.places.wait() == 0, "one runs, one waits, and no more"
        for generated in range(2):  # none of them is posted
            queue.generated[f"job-{generated}"].set()
            await until_true(lambda generated=generated: len(queue.taken) == generated + 3)
    assert queue.asked == [2, 1, 1]
    assert max(queue.slept, default=0) < 1, "the SDK sleeps for a second where it believes that it is full"


async def test_answers_that_cannot_be_posted_end_the_taking(monkeypatch):
    async with Queue(monkeypatch, most=1) as queue:
        for generated in range(4):
            await until_true(lambda generated=generated: len(queue.taken) == generated + 1)
            queue.generated[f"job-{generated}"].set()
        await until_true(lambda: queue.slept.count(1) > 1)  # as many as the SDK was told of, and none of them waits
        assert len(queue.taken) == 4
        queue.posted["job-0"].set()
        await until_true(lambda: len(queue.taken) == 5)


async def test_nothing_is_taken_while_there_are_no_places():
    def refuse(*args):
        raise AssertionError("asked for")

    places = Places(lambda: 0, lambda: [])
    assert places.told(0) == 0
    assert await taking(refuse, places)(None, 3) == []


async def test_a_job_without_an_id_loses_only_itself():
    async def get_job(session, count):
        return [{"input": 1}, 5, None, {"id": None}, {"id": ["a"]}, {"id": "good", "input": {}}, {"id": 5, "self": 1}]

    places = Places(lambda: 7, lambda: [])
    assert await taking(get_job, places)(None, 7) == [{"id": "good", "input": {}}, {"id": 5}]


@pytest.mark.parametrize(
    ("in_progress", "generated", "free"), [("ab", "", 0), ("ab", "a", 1), ("b", "ab", 2), ("", "", 2)]
)
async def test_a_place_is_the_jobs_until_it_is_generated(in_progress, generated, free):
    places = Places(lambda: 2, lambda: in_progress)
    for job_id in generated:
        places.leave(job_id)
    assert places.free == free
