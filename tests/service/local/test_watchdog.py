"""An engine that does not answer: each phase has its budget; then the worker says so, takes nothing and is replaced."""

import asyncio

import pytest

from tests.fakes.engine import make_context
from tests.service.local.test_backend import begun
from tests.waiting import LIMIT_S, until_true
from worker.core.errors import DeviceLost, Overloaded
from worker.core.result import Progress
from worker.service.local import watchdog
from worker.service.local.watchdog import Watchdog


class Clock:
    """A clock that is set."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watched(clock):
    return Watchdog(60, clock)


GB = 10**9
# The signs of life before the silence, and the seconds that it may take.
PHASES = {
    "built": (lambda dog: dog.begin(builds=True), 180),
    "begun": (lambda dog: dog.begin(builds=False), 60),
    "small load": (lambda dog: dog.hear(Progress("load", 0, 1), 10**6), 60),
    "large load": (lambda dog: dog.hear(Progress("load", 0, 1), 24 * GB), 60 + 480),
    "encoding": (lambda dog: dog.hear(Progress("load", 1, 1), 24 * GB), 60),
    "step": (lambda dog: dog.hear(Progress("inference", 3, 20), 24 * GB), 60),
    "decoding": (lambda dog: dog.hear(Progress("inference", 20, 20), 24 * GB), 60),
}


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_its_budget(phase, watched, clock):
    sign, budget_s = PHASES[phase]
    sign(watched)
    clock.now += budget_s - 1
    watched.check()
    assert watched.complaint is None
    clock.now += 3
    assert watched.overdue_s == pytest.approx(2, abs=0.1)
    with pytest.raises(Overloaded, match="without a sign of life") as raised:
        watched.check()
    assert raised.value.retryable
    assert raised.value.details["retry_after_s"] == 60
    watched.end()
    watched.check()


def called(dog, clock, step_s, decode_s, steps=10, work="sdxl", ends=True):
    """One call of a pipeline, up to its end or amid its decoding."""
    dog.begin(builds=False)
    dog.hear(Progress("inference", 0, steps), work=work)
    for step in range(steps):
        clock.now += step_s
        dog.hear(Progress("inference", step + 1, steps), work=work)
    if ends:
        clock.now += decode_s
        dog.finished()
        dog.end()


def budget(dog, clock):
    """The seconds that it may be silent now."""
    began = clock.now
    while dog.complaint is None:
        clock.now += 1
    return clock.now - began


def stepping(dog, step, steps=10, work="sdxl"):
    dog.begin(builds=False)
    for number in range(step + 1):
        dog.hear(Progress("inference", number, steps), work=work)


HALF = 31


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 301), (1, HALF), (9, HALF), (10, 81)],
    ids=["what comes before a first step", "a step", "a last step", "a decoding"],
)
def test_what_is_known_has_a_budget_of_its_own(clock, step, expected):
    dog = Watchdog(300, clock)
    called(dog, clock, step_s=1, decode_s=4)
    stepping(dog, step)
    assert budget(dog, clock) == expected


def test_nothing_is_known_of_other_work_and_of_calls_that_did_not_end(clock):
    dog = Watchdog(300, clock)
    called(dog, clock, step_s=1, decode_s=4, ends=False)
    dog.end()
    stepping(dog, 5)
    assert budget(dog, clock) == 301
    called(dog, clock, step_s=1, decode_s=4)
    for other in ({"work": "flux"}, {"steps": 12}):
        stepping(dog, 5, **other)
        assert budget(dog, clock) == 301
    called(dog, clock, step_s=20, decode_s=4)
    stepping(dog, 5)
    assert budget(dog, clock) == 301  # never more than what is unknown has


def test_a_process_that_was_stopped_as_a_whole_was_not_silent(clock, monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.0)
    dog, lost, looks = Watchdog(60, clock), [], 0

    def is_lost():
        nonlocal looks
        looks += 1
        if looks == 3:
            clock.now += 5_000
        return looks > 6

    dog.begin(builds=False)
    asyncio.run(dog.watch(is_lost, lost.append))
    assert lost == []
    assert dog.complaint is None


@pytest.fixture
def silent(tmp_path, monkeypatch):
    """A worker whose engine may be silent for a second, and is given up on at once."""
    monkeypatch.setattr(watchdog, "GRACE_S", 0.2)
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.05)
    context = make_context(tmp_path, silence_seconds=1)
    yield context
    context.engine.alive.set()
    context.engine.gate.set()


async def test_a_silent_engine_is_told_of_and_gets_no_new_job(silent, monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE_S", 600)
    running = await begun(silent)
    silent.engine.alive.clear()
    await until_true(lambda: silent.worker.engine.obstacle)
    with pytest.raises(Overloaded):
        await silent.draw(prompt="next")
    status = await silent.ask(action="status")
    assert status["status"] == "failed"
    assert "sign of life" in status["reason"]
    silent.engine.alive.set()
    silent.engine.gate.set()
    assert (await running)["image"]  # it was only slow
    assert (await silent.draw(prompt="next"))["image"]
    assert (await silent.ask(action="status"))["status"] == "ready"


@pytest.mark.parametrize("phase", ["step", "load", "preload"])
async def test_an_engine_that_stays_silent_costs_the_worker_and_everybody_is_answered(silent, phase, monkeypatch):
    silent.engine.alive.clear()
    if phase == "load":
        monkeypatch.setattr("tests.fakes.engine.time.sleep", lambda seconds: silent.engine.alive.wait(60))
    if phase == "preload":
        monkeypatch.setattr(silent.engine, "preload", lambda model, files, emit: silent.engine.alive.wait(60))
    first = silent.ask(action="preload") if phase == "preload" else silent.draw(timeout_s=60)
    waiting = [asyncio.create_task(first)]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(silent.draw(prompt="behind", timeout_s=60))]
    await asyncio.wait_for(silent.worker.until_lost(), LIMIT_S)
    errors = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), LIMIT_S)
    assert [type(error) for error in errors] == [DeviceLost] * 2
    assert (await silent.ask(action="status"))["status"] == "lost"
