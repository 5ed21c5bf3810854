"""Shares of the device and of its places: whose turn it is, by the weights of their keys."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from tests.fakes.engine import make_context
from tests.service.local.test_buckets import queued
from tests.waiting import settled, until_true
from worker.core.errors import Overloaded
from worker.core.turn import Turn, under_way
from worker.service.limits.admission import Admission, AdmissionLimits
from worker.service.limits.key_rights import KeyRight, KeyRights
from worker.service.limits.places import Places
from worker.service.limits.shares import Shares
from worker.service.local.batching import Buckets

WEIGHTS = {"double": 2.0}


def weight(caller):
    return WEIGHTS.get(caller, 1.0)


class TestPlaces:
    async def given(self, places, callers):
        """Tasks that wait for places, and the list of callers in the order in which they are given one."""
        order = []

        async def wait(caller):
            await places.take(caller)
            order.append(caller)

        tasks = []
        for caller in callers:
            tasks.append(asyncio.create_task(wait(caller)))
            await asyncio.sleep(0)
        return tasks, order

    async def test_whoever_holds_the_fewest_is_next(self):
        places = Places(2)
        _, order = await self.given(places, ["a"] * 5 + ["b", "c"])
        assert order == ["a", "a"]
        for caller in ("a", "a", "b"):
            places.give_back(caller)
            await settled()
        assert order == ["a", "a", "b", "a", "c"]  # a and c had none each when the fourth came, and a was first

    async def test_a_weight_of_two_holds_twice_as_many(self):
        places = Places(6, weight)
        first, _ = await self.given(places, ["x"] * 6)
        rest, _ = await self.given(places, ["single"] * 6 + ["double"] * 6)
        for _ in first:
            places.give_back("x")
        await settled()
        done = [task for task in rest if task.done()]
        held = Counter("single" if rest.index(task) < 6 else "double" for task in done)
        assert held == {"single": 2, "double": 4}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def test_who_is_gone_is_passed_by_and_one_that_was_just_given_goes_on(self):
        places = Places(1)
        tasks, order = await self.given(places, ["a", "b", "c"])
        tasks[1].cancel()
        await settled()
        places.give_back("a")
        tasks[2].cancel()  # which has its place, and has not been told yet
        await settled()
        _, order = await self.given(places, ["d"])
        await settled()
        assert order == ["d"]


class TestShares:
    def test_nobody_saves_up_by_being_away(self):
        shares = Shares()
        shares.enter("a")
        shares.charge("a", 1000)
        shares.enter("b")
        assert shares.had("b") == shares.had("a") == 1000
        shares.charge("b", 5)
        shares.leave("a")
        shares.enter("a")
        assert (shares.had("a"), shares.had("b")) == (1005, 1005)

    def test_once_nobody_has_work_all_begin_anew(self):
        shares = Shares()
        shares.enter("a")
        shares.charge("a", 1000)
        shares.leave("a")
        shares.enter("b")
        shares.enter("a")
        assert (shares.had("a"), shares.had("b")) == (0, 0)

    def test_jobs_take_turns_by_weight(self):
        order = [["single", "double"][index // 6] for index in Shares(weight).turns(["single"] * 6 + ["double"] * 6)]
        assert Counter(order[:6]) == {"single": 2, "double": 4}


MODELS = {"a": "x", "b": "y"}


def drawn_from(callers, models=None, load_s=0.0, count=60, *, charged=True):
    """Whose jobs a device draws, one after the other, if all of these have endless work."""
    shares, now, resident, order = Shares(weight), 0.0, "", []
    buckets = Buckets(1, 0.0, shares)
    for model in (models or {}).values():
        buckets.note_load(model, load_s)
    serial = iter(range(100_000))

    def send(caller):
        job = queued(now, model=(models or {}).get(caller, "m"), params={"serial": next(serial)})
        job.caller = caller
        shares.enter(caller)
        buckets.add(job)

    for caller in callers:
        for _ in range(3):
            send(caller)
    while len(order) < count:
        (job,) = buckets.take(now, [resident])
        model = job.job.call.spec.id
        spent = 1.0 + (load_s if model != resident else 0.0)
        now, resident = now + spent, model
        order.append(job.caller)
        shares.charge(job.caller, spent if charged else 0.0)
        send(job.caller)
        shares.leave(job.caller)
    return order


@pytest.fixture(autouse=True)
async def loop():
    """Queued jobs hold a future, which belongs to a loop."""
    yield asyncio.get_running_loop()


async def test_the_device_is_shared_evenly_and_by_weight():
    assert Counter(drawn_from(["a", "b", "c"])) == {"a": 20, "b": 20, "c": 20}
    assert Counter(drawn_from(["single", "double"])) == {"single": 20, "double": 40}


async def test_a_share_is_not_spent_on_loading_models_in_turns():
    def switches(**how):
        return sum(one != other for one, other in pairwise(drawn_from(["a", "b"], MODELS, 10.0, count=200, **how)))

    assert switches() <= switches(charged=False) + 2  # no more than without any shares
    assert abs(Counter(drawn_from(["a", "b"], MODELS, 10.0, count=200))["a"] - 100) <= 35  # a turn of one of them


async def test_one_with_a_long_queue_does_not_hold_up_another(tmp_path):
    context = make_context(tmp_path)
    context.engine.gate.clear()
    order = []

    async def draw(caller, prompt):
        token = under_way.set(Turn(caller))
        try:
            await context.draw(prompt=prompt)
            order.append(prompt)
        finally:
            under_way.reset(token)

    tasks = [asyncio.create_task(draw("anna", f"anna {index}")) for index in range(8)]
    await until_true(lambda: context.worker.mux.waiting == 7 and context.engine.inside.is_set())
    tasks.append(asyncio.create_task(draw("ben", "ben")))
    await until_true(lambda: context.worker.mux.waiting == 8)
    context.engine.gate.set()
    await asyncio.gather(*tasks)
    assert order.index("ben") <= 2  # the one that was under way, and one more at most
    assert len(order) == 9


async def test_one_of_several_keys_leaves_the_others_room():
    rights = KeyRights()
    admission = Admission(AdmissionLimits(max_concurrent=2, max_queued=6), rights=rights)

    def taken(caller, count):
        for _ in range(count):
            admission.check_open(caller)
            admission._of_caller[caller] += 1

    taken("anna", 8)
    rights.replace({"anna": KeyRight()}, several=True)
    with pytest.raises(Overloaded, match="8 jobs of this key"):
        admission.check_open("anna")
    admission.check_open("ben")
