"""Idle time: faster ways are tried while no job is there, and never in front of one."""

import asyncio

import pytest

from tests.fakes.engine import make_context
from worker.core.quality import LeverReport


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.app.build.IDLE_S", 0.0)
    return make_context(tmp_path)


async def until(true):
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def stopped(context):
    """True once a try was stopped: by a test, or before that by the question that follows the first job of a worker."""
    return {*context.engine.tries} == {"stopped"}


async def test_after_a_job_everything_there_is_is_tried_and_nothing_before_one(context):
    context.engine.to_try = 2
    await asyncio.sleep(0.05)
    assert context.engine.tries == []
    await context.draw()
    await until(lambda: context.engine.tries[-2:] == ["done", "done"])


@pytest.mark.parametrize("asked", [{"seed": 2}, {"action": "preload", "model": "any"}])
async def test_a_try_stops_for_whatever_is_asked_of_the_engine_and_is_begun_anew(context, asked):
    context.engine.to_try = 1
    context.engine.tried.clear()
    await context.draw()
    await until(context.engine.trying.is_set)
    await context.ask(**({} if "action" in asked else {"prompt": "a"}), **asked)
    assert stopped(context)
    context.engine.tried.set()
    await until(lambda: context.engine.tries[-1] == "done")
    assert context.engine.overlaps == 0


async def test_a_question_about_the_device_is_not_the_end_of_trying(context):
    """Whoever asks for a plan stops a try too, and no job comes after it."""
    context.engine.to_try = 1
    context.engine.tried.clear()
    await context.draw()
    await until(context.engine.trying.is_set)
    await context.ask(action="plan", model="any")
    context.engine.tried.set()
    await until(lambda: context.engine.tries[-1:] == ["done"])


async def test_a_worker_that_is_told_to_stop_tries_nothing_and_waits_for_no_try(context):
    context.engine.to_try = 2
    context.engine.tried.clear()
    await context.draw()
    await until(context.engine.trying.is_set)
    await context.worker.operations.generation.admission.close(1)
    await until(lambda: stopped(context))
    before = len(context.engine.tries)
    context.worker.mux._improving.idle()
    await asyncio.sleep(0.1)
    assert len(context.engine.tries) == before and not context.engine.trying.is_set()


async def test_with_levers_off_nothing_is_ever_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.app.build.IDLE_S", 0.0)
    context = make_context(tmp_path, levers="off")
    context.engine.to_try = 1
    await context.draw()
    await asyncio.sleep(0.1)
    assert context.engine.tries == []


async def test_the_status_tells_what_was_decided_and_why(context):
    context.engine.levers = (LeverReport("tiny", "compile", "exact", "off", "it is slower", 51.23, 0.91),)
    await context.draw()
    (lever,) = (await context.ask(action="status"))["levers"]
    assert lever == {
        "model": "tiny",
        "lever": "compile",
        "quality": "exact",
        "verdict": "off",
        "reason": "it is slower",
        "psnr_db": 51.2,
        "gain": 0.91,
    }
    assert 'imgworker_lever_on{lever="compile",model="tiny"} 0.0' in context.worker.metrics.exposition().decode()
