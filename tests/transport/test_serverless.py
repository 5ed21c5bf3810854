"""The RunPod door without the SDK: what its handler returns, whatever happens behind it."""

import asyncio
import base64
import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.answers import files_of
from tests.fakes.engine import TRACED, FakeEngine, fresh_id, make_context
from tests.streams import documented_reader
from tests.transport.web.uploads import noise
from tests.waiting import until_true
from worker.app import queue
from worker.app.queue import build_door
from worker.core.answer import ModelSchema
from worker.core.errors import DeviceLost, InvalidRequest, OutOfMemory, WorkerError
from worker.core.image import Raster
from worker.core.result import Progress
from worker.service.jobs import delivery
from worker.service.jobs.store import JobStore
from worker.transport import serverless
from worker.transport.serverless import ServerlessDoor


def door_of(context, **options):
    return build_door(context.worker, concurrency=2, **options)


def door_over(perform, **options):
    """A door in front of work that does as `perform` does."""
    return ServerlessDoor(JobStore(perform), SimpleNamespace(repeated=lambda record: nullcontext()), **options)


def acting(perform):
    return door_over(perform, concurrency=2)


def job(**payload):
    return {"id": fresh_id(), "input": {"prompt": "x", **payload}}


async def test_whoever_may_use_the_endpoint_gets_a_profile(context):
    answer = await door_of(context).handle(job(profile=True))
    assert base64.b64decode(answer["profile"]["trace"]) == TRACED.trace
    assert "profile" not in await door_of(context).handle(job())


def posted(answer):
    """What the SDK makes of an answer; raises where it would lose it."""
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


async def test_a_job_is_answered_with_the_result_itself(context):
    answer = await door_of(context).handle(job(seed=3))
    assert answer["seed"] == 3
    assert "error" not in answer
    assert "output" not in answer
    posted(answer)


@pytest.mark.parametrize("num_images", [1, 3])
async def test_an_answer_holds_each_file_once(tmp_path, num_images):
    context = make_context(tmp_path, FakeEngine(lambda job, seed: noise(512, 512)))
    answer = await door_of(context).handle(job(num_images=num_images))
    files = files_of(answer)
    assert len(files) == num_images
    assert len(posted(answer)) <= 1.02 * sum(map(len, files))


@pytest.mark.parametrize(
    "broken",
    [{}, {"id": None}, {"id": 5, "input": None}, {"id": "\ud800", "input": {"prompt": "x", "widht": 5}}, {"input": 5}],
)
async def test_a_broken_job_gets_an_error_that_can_be_posted(context, broken):
    answer = await door_of(context).handle(broken)
    assert isinstance(answer["error"], str)
    assert answer["error"]
    assert isinstance(answer["request_id"], str)
    posted(answer)


@pytest.mark.parametrize(
    "failure", [ValueError("secret \ud800"), KeyError("secret"), RecursionError(), MemoryError("secret"), OSError(28)]
)
async def test_an_unforeseen_exception_becomes_an_error_without_its_text(failure):
    async def perform(job, job_id, emit, caller):
        raise failure

    answer = await acting(perform).handle({"id": "j", "input": {}})
    assert (answer["code"], answer["retryable"], answer["request_id"]) == ("internal_error", False, "j")
    assert "secret" not in posted(answer).decode()


def as_sent(chunk):
    """What the SDK posts of one chunk of a stream; raises where it would lose it."""
    return json.dumps({"output": chunk}, ensure_ascii=False, allow_nan=False).encode()


async def test_a_stream_has_what_is_over_every_limit_in_parts_of_a_megabyte(tmp_path):
    context = make_context(tmp_path, FakeEngine(lambda job, seed: noise(512, 512)), max_response_mb=0.02)
    ask = {"prompt": '"' * 3_000, "output": {"delivery": "stream"}, "seed": 5, "num_images": 2}
    chunks = [chunk async for chunk in door_of(context).stream(job(**ask))]
    assert [chunk["index"] for chunk in chunks] == [*range(len(chunks))]
    assert {chunk["total"] for chunk in chunks} == {len(chunks)}
    assert len(chunks) == 1 + sum(len(chunk["data"]) for chunk in chunks) // 989_000  # no more than are needed
    assert max(len(as_sent(chunk)) for chunk in chunks) <= 1_000_000
    answer = documented_reader()(chunks)
    assert (answer["prompt"], answer["seeds"], answer["format"]) == ('"' * 3_000, [5, 6], "png")
    assert Image.open(io.BytesIO(base64.b64decode(answer["images"][1]))).tobytes() == noise(512, 512).data
    with pytest.raises(ValueError, match=r"of \d+ parts arrived"):
        documented_reader()(chunks[1:])


async def test_a_stream_has_a_small_answer_in_one_chunk_and_a_larger_one_in_parts_without_being_asked(tmp_path):
    context = make_context(tmp_path, FakeEngine(lambda job, seed: noise(256, 512 if len(job.seeds) > 1 else 64)))
    (small,) = [chunk async for chunk in door_of(context).stream(job(seed=3))]
    assert small["seed"] == 3
    assert small["image"]
    (listed,) = [chunk async for chunk in door_of(context).stream({"id": fresh_id(), "input": {"action": "models"}})]
    assert listed["models"]
    large = [chunk async for chunk in door_of(context).stream(job(num_images=8))]
    assert len(large) > 1
    assert len(documented_reader()(large)["images"]) == 8


async def test_a_stream_has_a_failures_details_and_then_its_sentence(tmp_path):
    lost = []
    context = make_context(tmp_path)
    context.engine.failures = [DeviceLost("The GPU is gone.")]
    door = door_of(context, on_loss=lambda: lost.append(True))
    details, failure = [chunk async for chunk in door.stream(job())]
    assert (details["code"], failure) == ("device_lost", {"error": "The GPU is gone."})
    assert "error" not in details and "refresh_worker" not in details
    assert (lost, door.concurrency(2)) == ([True], 0)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_worker_that_lost_its_device_is_replaced_whether_its_endpoint_streams_or_not(
    tmp_path, monkeypatch, streams
):
    from runpod import serverless as sdk
    from runpod.serverless.modules import rp_http, rp_job, rp_scale

    context = make_context(tmp_path, runpod_webhook_get_job="http://queue", stream_results=streams)
    context.engine.failures = [DeviceLost("The GPU is gone.")]
    started, posted_bodies = [], []

    async def post(session, body, job, is_stream=False):
        posted_bodies.append(json.loads(json.dumps(body)))

    monkeypatch.setattr(queue, "quiet_sdk", lambda: None)
    monkeypatch.setattr(queue, "configure_logging", lambda **options: None)
    monkeypatch.setattr(queue, "read_settings", lambda: context.worker.settings)
    monkeypatch.setattr(queue, "build_worker", lambda settings: context.worker)
    monkeypatch.setattr(sdk, "register_fitness_check", lambda check: None)
    monkeypatch.setattr(sdk, "start", started.append)
    monkeypatch.setattr(rp_job, "send_result", post)
    monkeypatch.setattr(rp_job, "stream_result", post)
    monkeypatch.setattr(rp_http, "_transmit", rp_http._transmit)  # and back, as what is installed there
    monkeypatch.setattr(rp_scale, "get_job", rp_scale.get_job)
    queue.run_serverless()
    await rp_job.handle_job(SimpleNamespace(headers={}), started[0], job())
    assert (posted_bodies[-1]["error"], posted_bodies[-1]["stopPod"]) == ("The GPU is gone.", True)
    assert posted_bodies[0]["output"]["code"] == "device_lost"
    assert len(posted_bodies) == (2 if streams else 1)


async def test_a_door_without_a_stream_refuses_delivery_by_one_and_draws_nothing(context):
    answer = await door_of(context).handle(job(output={"delivery": "stream"}))
    assert (answer["code"], answer["field"]) == ("invalid_request", "output")
    assert "STREAM_RESULTS" in answer["error"]
    assert context.builder.built == 0


def circular():
    found = {}
    found["again"] = found
    return found


@pytest.mark.parametrize(
    "answer",
    [
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": b"bytes"},
        {"x": "\ud800"},
        {"\ud800": 1},
        {"x": {1, 2}},
        {"x": object()},
        circular(),
    ],
)
async def test_an_answer_that_json_cannot_hold_is_replaced_by_an_error(answer):
    async def perform(job, job_id, emit, caller):
        return ModelSchema(answer)

    got = await acting(perform).handle({"id": "j", "input": {}})
    assert got["code"] == "internal_error"
    posted(got)


async def test_an_empty_answer_is_not_empty():
    async def perform(job, job_id, emit, caller):
        return ModelSchema({})

    assert await acting(perform).handle({"id": "j", "input": {}})


async def test_an_error_without_words_still_fails_the_job():
    async def perform(job, job_id, emit, caller):
        raise InvalidRequest("")

    assert (await acting(perform).handle({"id": "j", "input": {}}))["error"]


async def test_a_lost_device_asks_for_a_new_worker_and_takes_no_more_jobs(context):
    door = door_of(context)
    assert door.concurrency(2) == 2
    context.engine.failures = [DeviceLost("The device is gone.")]
    answer = await door.handle(job())
    assert answer["code"] == "device_lost"
    assert answer["refresh_worker"] is True
    assert door.concurrency(2) == 0
    again = await door.handle(job())
    assert (again["code"], again["refresh_worker"]) == ("device_lost", True)
    assert len(context.engine.ran) == 1
    assert (await context.ask(action="status"))["status"] == "lost"


async def test_any_other_failure_keeps_the_worker(context):
    door = door_of(context)
    context.engine.failures = [OutOfMemory("Too large."), WorkerError("Failed."), ValueError("unforeseen")]
    for code in ("gpu_oom", "internal_error", "internal_error"):
        answer = await door.handle(job())
        assert answer["code"] == code
        assert "refresh_worker" not in answer
    assert "error" not in await door.handle(job())
    assert door.concurrency(2) == 2


async def test_the_place_of_a_job_is_free_before_its_pixels_are_encoded(context, monkeypatch):
    left, at_encoding, encode = [], [], delivery.encode
    monkeypatch.setattr(delivery, "encode", lambda *args: at_encoding.append([*left]) or encode(*args))
    door = door_of(context)
    door.on_generated = left.append
    assert "error" not in await door.handle({"id": "drawn", "input": {"prompt": "x"}})
    assert at_encoding == [["drawn"]]
    context.engine.failures = [OutOfMemory("Too large.")]
    for name, payload in {"failed": {"prompt": "x"}, "refused": {"widht": 1}, "asked": {"action": "status"}}.items():
        await door.handle({"id": name, "input": payload})
        assert left[-1] == name


async def test_concurrency_is_constant_and_starts_the_warm_up_once(context):
    calls = []
    door = door_of(context, on_loop_start=lambda: calls.append(1))
    assert {door.concurrency(current) for current in range(5)} == {2}
    await until_true(lambda: calls)
    await asyncio.sleep(0.2)
    assert calls == [1]


class Time:
    """The door's time, in which only steps and its own waits take any."""

    def __init__(self, monkeypatch):
        self.now, self.waited = 0.0, []
        monkeypatch.setattr(serverless, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(serverless, "asyncio", SimpleNamespace(sleep=self._wait))

    async def _wait(self, seconds):
        self.now += seconds
        self.waited.append(seconds)


class Telling:
    """A progress sender that remembers when it was called."""

    def __init__(self, time=None):
        self.sent, self.time = [], time

    def __call__(self, job, update):
        self.sent.append((self.time.now if self.time else None, update))


async def reporting(monkeypatch, every, steps, total=1000):
    """What a door tells of a job that reports a step each 10 ms from another thread."""
    monkeypatch.setattr(serverless, "PROGRESS_EVERY_S", every)
    time = Time(monkeypatch)
    told = Telling(time)
    late = []

    async def perform(job, job_id, emit, caller):
        def work():
            for step in range(1, steps + 1):
                time.now = step / 100
                emit(Progress("inference", min(step, total), total, "m"))

        late.append(emit)
        await asyncio.to_thread(work)
        return ModelSchema({"ok": True})

    door = door_over(perform, concurrency=1, send_progress=told)
    await door.handle({"id": "j", "input": {}})
    return told.sent, time, late[0]


async def test_progress_is_throttled_and_quiet_before_the_answer(monkeypatch):
    sent, time, emit = await reporting(monkeypatch, 0.125, 70)
    times = [at for at, _ in sent]
    assert times == [0.13, 0.26, 0.39, 0.52, 0.65]
    assert time.now == pytest.approx(times[-1] + serverless.QUIET_BEFORE_END_S)
    assert sent[0][1] == {"phase": "inference", "step": sent[0][1]["step"], "total": 1000, "message": "m"}
    emit(Progress("inference", 1, 1000))
    assert len(sent) == len(times)


async def test_updates_are_a_second_apart(monkeypatch):
    assert serverless.PROGRESS_EVERY_S >= 1
    assert serverless.QUIET_BEFORE_END_S >= 0.2


async def test_a_short_job_tells_nothing_and_waits_for_nothing(monkeypatch):
    sent, time, _ = await reporting(monkeypatch, 1.0, 50)
    assert sent == []
    assert time.waited == []


async def test_the_last_step_is_never_told(monkeypatch):
    sent, _, _ = await reporting(monkeypatch, 0.0, 10, total=3)
    assert [update["step"] for _, update in sent] == [1, 2]


async def test_progress_that_cannot_be_sent_fails_no_job(context, monkeypatch):
    monkeypatch.setattr(serverless, "PROGRESS_EVERY_S", 0)

    def fail(job, update):
        raise RuntimeError("can't start new thread")

    assert "error" not in await door_of(context, send_progress=fail).handle(job())


async def test_progress_false_tells_nothing(context, monkeypatch):
    monkeypatch.setattr(serverless, "PROGRESS_EVERY_S", 0)
    told = Telling()
    door = door_of(context, send_progress=told)
    await door.handle(job())
    assert told.sent
    told.sent.clear()
    await door.handle(job(progress=False))
    assert told.sent == []


async def test_a_cancelled_job_answers_nothing(tmp_path):
    context = make_context(tmp_path, FakeEngine())
    context.engine.gate.clear()
    task = asyncio.create_task(door_of(context).handle(job()))
    await asyncio.to_thread(context.engine.inside.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not context.engine.inside.is_set()


async def test_a_preview_is_not_lost_between_two_updates(monkeypatch):
    monkeypatch.setattr(serverless, "PROGRESS_EVERY_S", 0.1)
    time = Time(monkeypatch)
    told = Telling(time)

    async def perform(job, job_id, emit, caller):
        emit(Progress("inference", 1, 9, preview=Raster("RGB", 8, 8, bytes(192))))  # too early to be told
        time.now += 0.15
        emit(Progress("inference", 2, 9))
        return ModelSchema({"ok": True})

    await door_over(perform, concurrency=1, send_progress=told).handle({"id": "j"})
    assert [(update["step"], "preview" in update) for _, update in told.sent] == [(2, True)]
