"""F15: the platform refuses a result. Nothing stays IN_PROGRESS, no image is lost where there is a place for it."""

import tempfile
import time
from pathlib import Path

import pytest
from aiohttp_retry import FibonacciRetry
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http, rp_job, rp_progress, rp_scale

from tests.answers import files_of
from tests.conftest import PROJECT
from tests.fakes import runpod_platform
from tests.fakes.bucket import FakeBucket
from tests.fakes.engine import make_context
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from worker.app.queue import build_door
from worker.transport import runpod_results, runpod_taking

IMAGES = {"prompt": "x", "num_images": 2, "seed": 7}


@pytest.fixture
def platform(monkeypatch):
    """RunPod's protocol, spoken by the SDK's own functions in this process, as a worker has them."""
    for module, name in (
        (rp_job, "send_result"), (rp_job, "stream_result"), (rp_http, "_transmit"), (rp_scale, "get_job"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # and back, whatever is installed meanwhile
    monkeypatch.setattr(rp_job.log, "level", "ERROR")  # at DEBUG, its own default, it logs results
    monkeypatch.setattr(runpod_results, "PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(rp_http, "FibonacciRetry", lambda attempts: FibonacciRetry(attempts=1))
    with RunPodPlatform(hold=0.2) as found:
        env = {name: url.replace("$RUNPOD_POD_ID", "pod123") for name, url in found.worker_env().items()}
        monkeypatch.setattr(rp_job, "JOB_GET_URL", env["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", "pod123"))
        monkeypatch.setattr(rp_http, "JOB_DONE_URL", env["RUNPOD_WEBHOOK_POST_OUTPUT"])
        monkeypatch.setattr(rp_http, "JOB_STREAM_URL", env["RUNPOD_WEBHOOK_POST_STREAM"])
        monkeypatch.setenv("RUNPOD_AI_API_KEY", found.api_key)
        monkeypatch.setenv("HOME", found.folder)
        yield found


async def run(platform, context, *jobs, streams=False):
    """Have the SDK take these jobs and run them; return their records."""
    door = build_door(context.worker, concurrency=2)
    runpod_results.install(door)
    assert runpod_taking.install(lambda: 64)
    config = {"handler": door.stream if streams else door.handle}
    async with AsyncClientSession() as session:
        session.headers["Authorization"] = platform.api_key
        platform.submit_raw(*jobs)
        for job in await rp_scale.get_job(session, len(jobs) + 1):
            await rp_job.handle_job(session, config, job)
        after = await session.get(rp_job.JOB_GET_URL + "&job_in_progress=0")
        assert after.status == 204, "the next job can be asked for"
    return [platform.records[job["id"]] for job in jobs if "id" in job]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refused_images_are_on_the_volume(platform, tmp_path, status, figures):
    platform.fail_done(1, status)
    (record,) = await run(platform, make_context(tmp_path), {"id": "big-u1", "input": IMAGES})
    assert (record.status, len(record.refused), len(record.results)) == ("COMPLETED", 1, 1)
    assert f"HTTP {status}" in record.output["warnings"][-1]
    paths = [Path(tmp_path, "volume", image) for image in files_of(record.output)]
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"] * 2
    figures("F15", f"bodies posted for a result that is refused with {status}", 2, at_most=2)


async def test_refused_images_are_in_the_bucket(platform, tmp_path):
    with FakeBucket() as bucket:
        keys = {"bucket_access_key_id": "test-access", "bucket_secret_access_key": "secret"}
        context = make_context(tmp_path, bucket_endpoint_url=bucket.endpoint, bucket_name="results", **keys)
        platform.fail_done(1, 413)
        (record,) = await run(platform, context, {"id": "big-u1", "input": IMAGES})
        assert record.status == "COMPLETED"
        assert [image.startswith(bucket.endpoint) for image in files_of(record.output)] == [True, True]
        assert len(bucket.objects) == 2


async def test_without_another_place_an_error_names_the_size_and_the_fix(platform, tmp_path, monkeypatch):
    context = make_context(tmp_path)
    monkeypatch.setattr("worker.service.jobs.output_folder.OutputFolder.put", fails)
    platform.max_done_bytes = 1_500
    (record,) = await run(platform, context, {"id": "big-u1", "input": IMAGES | {"width": 256, "height": 256}})
    assert (record.status, record.output["code"]) == ("FAILED", "result_too_large")
    assert f"{record.output['details']['bytes'] / 1e6:.3g} MB (HTTP 400)" in record.error
    assert "bucket" in record.error


def fails(*args):
    from worker.core.errors import DiskFull

    raise DiskFull("The volume is full.")


async def test_a_refused_error_is_followed_by_one_that_is_taken(platform, tmp_path):
    platform.max_done_bytes = 700
    body = {"prompt": "x", **{f"unknown_{number}": 1 for number in range(200)}}
    records = await run(platform, make_context(tmp_path), {"id": "bad-u1", "input": {"model": "no/such", **body}})
    assert [record.status for record in records] == ["FAILED"]


@pytest.mark.parametrize("status", [500, 502, 429])
async def test_a_platform_that_fails_is_asked_again(platform, tmp_path, status):
    platform.fail_done(2, status)
    (record,) = await run(platform, make_context(tmp_path), {"id": "a-u1", "input": IMAGES})
    assert (record.status, len(record.refused), len(files_of(record.output))) == ("COMPLETED", 2, 2)
    platform.fail_done(4, status)
    (record,) = await run(platform, make_context(tmp_path), {"id": "b-u1", "input": IMAGES})
    assert (record.status, record.output["code"], record.output["retryable"]) == ("FAILED", "source_unavailable", True)


async def test_a_stream_without_one_of_its_parts_is_no_success(platform, tmp_path, monkeypatch):
    monkeypatch.setattr(runpod_platform, "MAX_CHUNK_BYTES", 100)
    asked = IMAGES | {"output": {"delivery": "stream"}}
    (record,) = await run(platform, make_context(tmp_path), {"id": "s-u1", "input": asked}, streams=True)
    assert (record.status, record.stream) == ("FAILED", [])
    assert "refused" in record.error


STRANGE = [
    {"id": "a\r\nX-Evil: 1-u1"}, {"id": "a/b?c#d%41&e-u1"}, {"id": "漢-u1"}, {"id": "é" * 200},
    {"id": "self-u1", "self": 1},
]  # fmt: skip


@pytest.mark.parametrize("job", STRANGE, ids=range(len(STRANGE)))
async def test_a_job_with_a_strange_id_is_answered_and_keeps_no_other_waiting(platform, tmp_path, job):
    (record,) = await run(platform, make_context(tmp_path), job | {"input": {"action": "models"}})
    assert record.status == "COMPLETED"
    assert all("X-Evil" not in seen.headers for seen in platform.requests)


@pytest.mark.parametrize("job_id", [5, None, "line\nbreak", "x" * 20_000])
async def test_no_id_stays_in_the_sessions_headers(platform, job_id):
    async def post(session, job_data, job, **sent):
        session.headers["X-Request-ID"] = job["id"]

    async with AsyncClientSession() as session:
        before = dict(session.headers)
        poster = runpod_results.ResultPoster(None, post, post)
        await poster.send_result(session, {"output": 1}, {"id": job_id})
        assert dict(session.headers) == before


def test_the_sdk_is_the_one_that_was_read():
    """Another version may post in another way: read it, and mend `runpod_results.py` with this."""
    import runpod

    assert runpod.__version__ == "1.12.0"
    assert rp_progress.send_result is rp_http.send_result, "progress is not in the way of results"


@pytest.mark.slow
def test_a_real_worker_goes_on_after_malformed_jobs_and_refused_results(tmp_path, figures):
    with RunPodPlatform(hold=1.0) as platform:
        env = {**platform.worker_env(), "DEVICE": "cpu", "WARM_UP": "0"}
        env["VOLUME_DIR"] = tempfile.mkdtemp(dir=tmp_path)
        with WorkerProcess(PROJECT / "handler.py", env=env):
            platform.wait(platform.submit({"action": "models"}), 60)
            for job in STRANGE:
                platform.submit_raw(job | {"input": {"action": "models"}})
            platform.submit_raw({"id": 5, "input": {"action": "models"}})
            started = time.monotonic()
            platform.wait(platform.submit({"action": "models"}), 60)
            figures("F15", "next job after malformed ones", time.monotonic() - started, "s", at_most=5, momentary=True)
            platform.fail_done(1, 413)
            record = platform.wait(platform.submit({"prompt": "a red apple", "num_inference_steps": 1}), 120)
            assert record.status == "COMPLETED", record.error
            assert Path(env["VOLUME_DIR"], record.output["image"]).read_bytes()[:4] == b"\x89PNG"
            waiting = [known.id for known in platform.records.values() if known.status == "IN_PROGRESS"]
            figures("F15", "jobs IN_PROGRESS for ever", len([job for job in waiting if job != 5]), at_most=0)
