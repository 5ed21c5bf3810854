"""Every guard at every door that draws: refused in the door's own shape, and nothing was run or charged for it."""

import asyncio
import hashlib
from contextlib import ExitStack

import httpx
import pytest

from tests.fakes.web_worker import WebWorker
from tests.transport.web.doors import DOORS, number_at
from tests.waiting import until
from worker.service.usage.log import read_usage

WORK = 64 * 64 * 5  # what each door asks for
LISTED = ["tiny", "any", "org/sdxl", "fast", "editor", "video"]
# One caller for each door, so that they can share a server and have nothing else in common.
CALLERS = {door: door.replace(", ", "-").replace(" ", "-") for door in DOORS}
KEYS = {door: f"{caller}'s own secret key" for door, caller in CALLERS.items()}

SOMEBODY = {"Authorization": f"Bearer {KEYS['run']}"}

every_door = pytest.mark.parametrize("door", DOORS)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with these settings; the same one for the same settings."""
    found = {}
    entries = [f"{caller}:{hashlib.sha256(KEYS[door].encode()).hexdigest()}" for door, caller in CALLERS.items()]

    with ExitStack() as running:

        def serve(**changes):
            name = str(changes)
            if name not in found:
                settings = {"api_keys": ",".join(entries), "edit_model": "tiny", **changes}
                found[name] = running.enter_context(WebWorker(tmp_path_factory.mktemp("guarded"), **settings))
            return found[name]

        yield serve


def ask(served, door, headers=None, **sent):
    return DOORS[door](served, sent, {"Authorization": f"Bearer {KEYS[door]}", **(headers or {})})


def accounts(served):
    with served.context.worker.quotas._accounts.held() as accounts:
        return dict(accounts)


def refused(served, door, status, code, headers=None, inside=False, **sent):
    """Ask, and hold the refusal against what is right here; nothing was run for it, and nothing charged."""
    engine, admission = served.context.engine, served.context.worker.operations.generation.admission
    before = (len(engine.ran), served.context.builder.built, accounts(served), admission.running, admission.queued)
    said = ask(served, door, headers, **sent)
    assert (said.status, said.code) == (number_at(door, status, inside=inside), code), said
    after = (len(engine.ran), served.context.builder.built, accounts(served), admission.running, admission.queued)
    assert after == before
    return said


def come_back(said):
    """When a refusal says that it is worth trying again, in seconds."""
    assert said.retry_after is not None
    return int(said.retry_after)


@every_door
def test_a_request_without_a_key(guarded, door):
    served = guarded()
    for sent in ("", "Bearer another key, as long", f"Basic {KEYS[door]}"):
        refused(served, door, 401, "unauthenticated", headers={"Authorization": sent})
    assert ask(served, door).code is None


@every_door
def test_a_caller_who_sends_too_fast(guarded, door):
    served = guarded(rate_limit_per_minute=1)
    assert ask(served, door).code is None
    assert 30 <= come_back(refused(served, door, 429, "rate_limited")) <= 60


@every_door
def test_a_caller_who_has_used_up_his_day(guarded, door):
    served = guarded(quota_pixel_steps_per_day=WORK)
    assert ask(served, door).code is None
    said = refused(served, door, 429, "quota_exceeded")
    assert 1 <= come_back(said) <= 86_400
    assert "20,480 pixel-steps a day, of which 0 are left; try again" in said.sentence


@every_door
def test_a_job_that_is_more_than_is_left_of_the_day(guarded, door):
    served = guarded(quota_pixel_steps_per_day=2 * WORK - 1)
    assert ask(served, door).code is None
    said = refused(served, door, 429, "quota_exceeded", inside=True)
    assert "of which 20,479 are left, and this job is 20,480; ask for less" in said.sentence


@every_door
def test_a_job_that_is_more_than_a_whole_day(guarded, door):
    served = guarded(quota_pixel_steps_per_day=WORK - 1)
    said = refused(served, door, 429, "quota_exceeded", inside=True)
    assert "The job is 20,480 pixel-steps" in said.sentence
    assert "gets 20,479 a day; ask for fewer images" in said.sentence
    assert said.retry_after is None
    assert accounts(served) == {}


@every_door
def test_a_job_that_is_more_work_than_any_may_be(guarded, door):
    served = guarded(max_pixel_steps=WORK - 1, rate_limit_per_minute=1)
    said = refused(served, door, 400, "parameter_out_of_range", inside=True)
    assert "20,480 pixel-steps" in said.sentence
    assert "at most 20,479" in said.sentence
    assert accounts(served) == {}


@every_door
def test_a_body_that_is_too_large(guarded, door):
    served = guarded(max_body_mb=0.02, rate_limit_per_minute=1)
    refused(served, door, 413, "request_too_large", prompt="x" * 30_000)
    assert ask(served, door).code is None


@every_door
def test_a_full_queue(guarded, door):
    served = guarded(max_concurrent_jobs=1, max_queued_jobs=0, rate_limit_per_minute=1_000)
    with served.busy(SOMEBODY):
        assert come_back(refused(served, door, 429, "overloaded")) >= 1
    assert ask(served, door).code is None


@every_door
def test_a_worker_that_is_being_stopped(guarded, door):
    served = guarded(shutdown_grace_seconds=1, rate_limit_per_minute=1)
    asyncio.run(served.context.worker.operations.generation.admission.close(0))
    refused(served, door, 503, "shutting_down")
    assert accounts(served) == {}


@every_door
def test_a_model_that_is_not_there(guarded, door):
    served = guarded(max_images=4, rate_limit_per_minute=1)
    said = refused(served, door, 400, "model_not_found", inside=True, model="nope")
    assert said.models == LISTED
    assert "nope" in said.sentence
    assert served.context.builder.built == 0
    assert accounts(served) == {}
    folder = served.context.worker.settings.usage_dir  # written to in the background
    lines = until(lambda: [line for line in read_usage(folder) if line["caller"] == CALLERS[door]])
    assert [(line["outcome"], line["model"]) for line in lines] == [("model_not_found", "unregistered")]


@every_door
def test_an_idempotency_key_that_came_with_another_request(guarded, door):
    if door == "socket":
        pytest.skip("a conversation's headers are not of one job")
    served = guarded(rate_limit_per_minute=1_000)
    headers, ran = {"Idempotency-Key": "the-same"}, len(served.context.engine.ran)
    assert ask(served, door, headers, prompt="an apple").code is None
    said = refused(served, door, 400, "invalid_request", headers, prompt="a frog")
    assert "Idempotency-Key" in said.sentence
    assert ask(served, door, headers, prompt="an apple").code is None  # replayed
    assert [job.prompt for job in served.context.engine.ran[ran:]] == ["an apple"]
    assert ask(served, door, {"Idempotency-Key": "another"}, prompt="a frog").code is None
    assert len(served.context.engine.ran) == ran + 2


@every_door
def test_a_caller_who_left_while_his_job_waited(guarded, door):
    if door.startswith(("v2", "replicate")) or door == "socket":
        pytest.skip("whoever hands a job in asks later; a conversation's end is tested with it")
    served = guarded(max_concurrent_jobs=64)
    admission, ran = served.context.worker.operations.generation.admission, len(served.context.engine.ran)
    patient = served.http
    with (
        served.busy(SOMEBODY),
        httpx.Client(base_url=served.origin, timeout=httpx.Timeout(10, read=0.3)) as served.http,
    ):
        try:
            with pytest.raises(httpx.ReadTimeout):
                ask(served, door, prompt="second")
        finally:
            served.http = patient
        until(lambda: admission.running + admission.queued <= 1)
    assert [job.prompt for job in served.context.engine.ran[ran:]] == ["first"]
