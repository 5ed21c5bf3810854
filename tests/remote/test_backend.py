"""The way of a job among replicas that only pretend: which of them is asked, how often, and what its caller gets."""

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.asking import an_answer
from tests.fakes.engine import make_context
from tests.waiting import until_true
from worker.core.errors import InvalidImage, OutOfMemory, Overloaded, Unreachable, UnsupportedModel
from worker.core.result import AnswerFile, EncodedArtifact, JobResult, Timings, ignore_progress
from worker.remote import backend as remote
from worker.remote.backend import RemoteBackend
from worker.remote.members import Member, Members
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.replica import Needs, ReplicaState, Weights

GIB = 2**30


def needs_of(job, seconds):
    model = job.call.spec.id
    return Needs(model=model, weights=(Weights(model, GIB),), inference_s=seconds)


def result():
    made = an_answer(AnswerFile("png", b"png"))
    facts = {name: getattr(made, name) for name in JobResult.__dataclass_fields__ if hasattr(made, name)}
    facts |= {"timings": Timings(inference_s=1.0), "artifacts": (EncodedArtifact(made.files, 1, 64, 64),)}
    return JobResult(**facts)


@dataclass
class Replica:
    """Does with the jobs that come what `script` says, one word each; draws when it has no more words."""

    facts: ReplicaState
    script: list = field(default_factory=list)
    heard: list = field(default_factory=list)
    hold: asyncio.Event | None = None

    @property
    def name(self):
        return self.facts.name

    def state(self):
        return self.facts

    async def observe(self):
        return self.facts

    async def send(self, job, key, emit):
        self.heard.append(("send", key))
        return await self._do()

    async def reconcile(self, job, key, emit):
        self.heard.append(("ask", key))
        return await self._do()

    async def close(self):
        pass

    async def _do(self):
        if self.hold is not None:
            await self.hold.wait()
        word = self.script.pop(0) if self.script else None
        if isinstance(word, Exception):
            raise word
        return None if word == "not there" else result()


def replica(name, *script, **facts):
    return Replica(ReplicaState(name=name, **facts), [*script])


def backend(*replicas, concurrency=8):
    return RemoteBackend(Members([Member(each, concurrency) for each in replicas]), needs_of)


def acts(each):
    return [act for act, _ in each.heard]


@pytest.fixture
def context(tmp_path):
    return make_context(tmp_path)


@pytest.fixture
async def job(context):
    return await context.accept(width=64, height=64)


GONE = Unreachable("The worker does not answer.")


async def test_a_job_that_was_not_taken_goes_to_the_next_replica_at_once(job):
    first, second = replica("a", NotTaken(GONE)), replica("b")
    answer = await backend(first, second).generate(job, ignore_progress)
    assert (acts(first), acts(second)) == (["send"], ["send"])
    assert (answer.placement.replica, answer.placement.attempts) == ("b", 2)
    assert "a" in answer.placement.reason


async def test_a_job_that_was_lost_sight_of_is_asked_for_by_its_key_and_not_sent_again(job):
    first, second = replica("a", LostSight(GONE)), replica("b")
    answer = await backend(first, second).generate(job, ignore_progress)
    assert (acts(first), acts(second)) == (["send", "ask"], [])
    assert len({key for _, key in first.heard}) == 1
    assert answer.placement.replica == "a"


async def test_only_when_it_is_certain_that_it_is_not_there_another_replica_has_it(job):
    first, second = replica("a", LostSight(GONE), "not there"), replica("b")
    await backend(first, second).generate(job, ignore_progress)
    assert (acts(first), acts(second)) == (["send", "ask"], ["send"])
    assert {key for _, key in first.heard} == {key for _, key in second.heard}


async def test_the_jobs_own_error_is_its_callers_and_no_other_replica_is_asked(job):
    first, second = replica("a", InvalidImage("Damaged.", field="image")), replica("b")
    with pytest.raises(InvalidImage):
        await backend(first, second).generate(job, ignore_progress)
    assert acts(second) == []


async def test_a_replica_that_ran_out_of_memory_is_followed_by_larger_ones_only(job):
    small = replica("a", NotTaken(OutOfMemory("Too small."), ill=False), vram_bytes=12 * GIB, speed=9.0)
    equal, large = replica("b", vram_bytes=12 * GIB, speed=8.0), replica("c", vram_bytes=48 * GIB)
    answer = await backend(small, equal, large).generate(job, ignore_progress)
    assert (answer.placement.replica, acts(equal)) == ("c", [])
    alone = replica("a", NotTaken(OutOfMemory("Too small."), ill=False), vram_bytes=12 * GIB)
    with pytest.raises(OutOfMemory):
        await backend(alone).generate(job, ignore_progress)


async def test_a_busy_replica_is_left_alone_for_as_long_as_it_asks_and_does_not_count_as_ill(job, monkeypatch):
    monkeypatch.setattr(remote, "_LOOK_AGAIN_S", 0.02)
    busy = replica("a", NotTaken(Overloaded("Full."), retry_after_s=0.1, ill=False))
    began = asyncio.get_running_loop().time()
    answer = await backend(busy).generate(job, ignore_progress)
    assert acts(busy) == ["send", "send"]
    assert asyncio.get_running_loop().time() - began >= 0.1
    assert answer.placement.attempts == 2


async def test_a_replica_that_failed_three_times_rests_and_is_then_tried_by_one_job(context):
    ill, well = replica("a", *[NotTaken(GONE)] * 3), replica("b", speed=0.01)
    both = backend(ill, well)
    for _ in range(5):
        await both.generate(await context.accept(width=64, height=64), ignore_progress)
    assert acts(ill) == ["send"] * 3
    assert len(acts(well)) == 5


async def test_it_is_told_when_no_replica_answers(job, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    with pytest.raises(Unreachable) as told:
        await backend(replica("a", health="resting")).generate(job, ignore_progress)
    assert told.value.details["retry_after_s"] > 0


async def test_a_model_that_nobody_serves_is_refused_and_nobody_is_asked(job):
    other = replica("a", serves=frozenset({"another"}))
    with pytest.raises(UnsupportedModel):
        await backend(other).generate(job, ignore_progress)
    assert acts(other) == []


async def test_jobs_beyond_a_replicas_concurrency_wait_here_and_go_where_there_is_room(context, monkeypatch):
    monkeypatch.setattr(remote, "_LOOK_AGAIN_S", 0.02)
    held = replica("a")
    held.hold = asyncio.Event()
    both = backend(held, concurrency=2)
    jobs = [await context.accept(width=64, height=64) for _ in range(5)]
    work = [asyncio.ensure_future(both.generate(each, ignore_progress)) for each in jobs]
    await until_true(lambda: len(held.heard) == 2)
    await asyncio.sleep(0.1)
    assert len(held.heard) == 2
    held.hold.set()
    await asyncio.gather(*work)
    assert len(held.heard) == 5
