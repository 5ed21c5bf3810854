"""What callers say and what operators keep secret is in no log, at any level, whatever happens."""

import logging

import pytest

from tests.fakes.engine import FakeEngine, fresh_id, make_context
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.core.errors import DeviceLost, OutOfMemory

PROMPT = "canary-prompt-5309 of an unlikely kind"
TOKEN = "hf_canaryTokenOfTheOperator42"


def door_of(worker):
    return build_door(worker, concurrency=1)


async def handle(door, **fields):
    payload = {"prompt": PROMPT, "negative_prompt": f"no {PROMPT}", **fields}
    return await door.handle({"id": fresh_id(), "input": payload})


def assert_silent(caplog, capfd):
    out, err = capfd.readouterr()
    logged = caplog.text + "".join(str(record.args) + record.getMessage() for record in caplog.records)
    for canary in ("canary-prompt", "canaryToken"):
        assert canary not in logged
        assert canary not in out
        assert canary not in err


@pytest.fixture
def context(tmp_path):
    return make_context(tmp_path, FakeEngine(), hf_token=TOKEN)


async def test_no_log_tells_a_prompt_or_a_token_of_jobs_that_succeed_or_fail(context, caplog, capfd, tmp_path):
    caplog.set_level(logging.DEBUG)
    door = door_of(context.worker)
    context.engine.failures = [OutOfMemory("Too large."), ValueError(f"unlucky: {PROMPT}"), DeviceLost("Gone.")]
    answers = [await handle(door, **fields) for fields in ({"widht": 5}, {"model": "org/sdxl"}, {"image": PROMPT})]
    answers += [await handle(door) for _ in range(3)]
    assert [answer["code"] for answer in answers] == [
        *("unknown_parameter", "source_unavailable", "invalid_image", "gpu_oom", "internal_error", "device_lost")
    ]
    assert all(TOKEN not in str(answer) for answer in answers)
    fine = make_context(tmp_path / "fine", hf_token=TOKEN)
    assert "error" not in await handle(door_of(fine.worker))
    assert caplog.records
    assert "unlucky" in caplog.text  # the rest of an unforeseen failure is told
    assert_silent(caplog, capfd)


async def test_a_hub_that_refuses_the_token_tells_nobody(tmp_path, caplog, capfd):
    from tests.fakes.hub import FakeHub

    caplog.set_level(logging.DEBUG)
    with FakeHub() as hub:
        context = make_context(tmp_path, OFFLINE=False, hf_endpoint=hub.endpoint, hf_token=TOKEN)
        answer = await handle(door_of(context.worker), model="org/sdxl")
        asked = [seen.headers.get("authorization", "") for seen in hub.requests]
    assert f"Bearer {TOKEN}" in asked  # the token was used
    assert "error" in answer
    assert TOKEN not in str(answer)
    assert "127.0.0.1" not in answer["error"]
    assert_silent(caplog, capfd)


async def test_the_real_engine_is_as_silent(settings, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    door = door_of(build_worker(settings))
    assert "error" not in await handle(door)
    # Longer than the text encoder reads: diffusers would say which words were cut.
    assert "error" not in await handle(door, prompt=f"{'many words ' * 60} {PROMPT}")
    assert_silent(caplog, capfd)


async def test_settings_and_workers_hide_their_secrets(context):
    assert TOKEN not in repr(context.worker.settings)
    assert TOKEN not in repr(context.worker)
