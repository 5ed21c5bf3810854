"""The real handler.py under the real RunPod SDK, against a control plane that speaks RunPod's protocol."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import PROJECT
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from tests.images import drawn_by_diffusers, pixels
from tests.streams import documented_reader

pytestmark = pytest.mark.slow  # a process that imports torch for each

HANDLER = PROJECT / "handler.py"


def worker_env(platform, zoo, tmp_path, **extra):
    return {
        **platform.worker_env(),
        "MODELS_YAML": str(zoo / "models.yaml"),
        "DEFAULT_MODEL": "tiny",
        "VOLUME_DIR": str(tmp_path / "volume"),
        "DEVICE": "cpu",
        **extra,
    }


@pytest.fixture(scope="module")
def served(zoo, tmp_path_factory):
    """A platform and a worker that takes its jobs, shared by the tests that do not break it."""
    with RunPodPlatform() as platform:
        env = worker_env(platform, zoo, tmp_path_factory.mktemp("served"))
        with WorkerProcess(HANDLER, env=env) as worker:
            platform.worker = worker
            yield platform


def slow(platform, seconds, **fields):
    """The input of a job that takes about `seconds` on this machine, as busy as it is now."""
    trial = {"prompt": "trial", "num_inference_steps": 10, "width": 128, "height": 128}
    for _ in range(2):  # the first one loads the model
        record = platform.wait(platform.submit(trial), 60)
    per_step = record.output["timings"]["inference_s"] / 10
    return trial | {"num_inference_steps": max(10, min(150, int(seconds / per_step))), **fields}


def test_it_polls_for_jobs_without_having_imported_torch(zoo, tmp_path):
    with (
        RunPodPlatform() as platform,
        WorkerProcess(HANDLER, env=worker_env(platform, zoo, tmp_path, WARM_UP="0")) as worker,
    ):
        assert platform.wait_until(lambda: platform.first_take_at, 60), worker.output
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
        platform.wait(platform.submit({"prompt": "x"}), 60)
        assert "libtorch" in Path(f"/proc/{worker.pid}/maps").read_text()


def test_fifty_jobs_come_back_each_with_its_own_image(served, zoo):
    prompts = [f"thing number {index}" for index in range(50)]
    ids = [served.submit({"prompt": text, "seed": index}) for index, text in enumerate(prompts)]
    for index, job_id in enumerate(ids):
        record = served.wait(job_id)
        assert record.status == "COMPLETED", record.error
        assert record.output["seed"] == index
        assert record.output["prompt"] == prompts[index]
        direct = drawn_by_diffusers(zoo / "models/sd1", index, prompt=prompts[index], num_inference_steps=3)
        assert np.array_equal(pixels(record.output), direct)
    assert len(served.seen("job-done")) >= 50


def test_a_cancelled_job_posts_nothing_and_frees_the_engine_at_once(served):
    long_id = served.submit({"prompt": "x", "num_inference_steps": 150, "width": 512, "height": 512, "num_images": 4})
    assert served.wait_until(lambda: any(item["phase"] == "inference" for item in served.progress(long_id)))
    next_id = served.submit({"prompt": "after", "seed": 2})
    served.cancel(long_id)
    assert served.wait(next_id).status == "COMPLETED"
    # The stop signal takes up to a second, a step less than one; all 150 steps take far longer.
    assert max(item["step"] for item in served.progress(long_id) if item["phase"] == "inference") < 149
    record = served.wait(long_id)
    assert record.status == "CANCELLED"
    assert record.results == []


def test_progress_is_told_in_order_and_never_after_the_result(served):
    job_id = served.submit(slow(served, 4))
    record = served.wait(job_id)
    steps = [item["step"] for item in served.progress(job_id) if item["phase"] == "inference"]
    assert steps == sorted(steps)
    assert len(steps) >= 1
    time.sleep(0.5)
    assert record.late_progress == []


def test_the_same_job_delivered_twice_is_drawn_once(served):
    job = {"id": "twice-u1", "input": {"prompt": "once", "num_images": 2}}
    served.submit_raw(job)
    first = served.wait("twice-u1").output
    served.submit_raw(job)
    again = served.wait("twice-u1", results=2)
    assert [post.body["output"]["images"] for post in again.results] == [first["images"]] * 2
    assert first["seed"] == again.results[1].body["output"]["seed"]  # drawn at random, so once


def test_a_bad_job_fails_with_a_sentence_and_the_worker_goes_on(served):
    record = served.wait(served.submit({"prompt": "x", "widht": 64}))
    assert record.status == "FAILED"
    assert "width" in record.error
    assert record.output["code"] == "unknown_parameter"
    assert record.output["field"] == "widht"
    assert "Traceback" not in json.dumps(record.view())
    assert served.wait(served.submit({"prompt": "x"})).status == "COMPLETED"


@pytest.mark.parametrize("payload", [None, [], "x", 5, {"prompt": "\ud800"}, {"prompt": None}])
def test_no_input_is_lost(served, payload):
    record = served.wait(served.submit(payload))
    assert record.status == "FAILED"
    assert record.error


def test_pings_name_the_running_job(served):
    job_id = served.submit(slow(served, 4))
    assert served.wait_until(lambda: any(job_id in seen.query.get("job_id", "") for seen in served.seen("ping")))
    served.wait(job_id)


def test_the_official_client_gets_the_image(served, monkeypatch):
    import runpod

    monkeypatch.setattr(runpod, "api_key", "test-key")
    monkeypatch.setattr(runpod, "endpoint_url_base", served.url)
    endpoint = runpod.Endpoint("ep")
    output = endpoint.run_sync({"input": {"prompt": "a red apple", "seed": 5}}, timeout=60)
    assert output["seed"] == 5
    assert pixels(output).shape == (64, 64, 3)


def test_an_answer_that_is_too_large_is_encoded_smaller_and_says_so(zoo, tmp_path):
    with RunPodPlatform() as platform:
        platform.max_done_bytes = 40_000
        env = worker_env(platform, zoo, tmp_path, MAX_RESPONSE_MB="0.04")
        with WorkerProcess(HANDLER, env=env):
            record = platform.wait(platform.submit({"prompt": "x", "num_images": 2, "width": 128, "height": 128}), 60)
            assert record.status == "COMPLETED", record.error
            assert record.output["format"] in {"webp", "jpeg"}
            assert record.output["format"] in record.output["warnings"][0]
            assert record.raw_length <= 40_000
            assert pixels(record.output).shape == (128, 128, 3)
            record = platform.wait(platform.submit({"prompt": "x", "num_images": 8, "width": 128, "height": 128}), 60)
            assert record.status == "FAILED"
            assert record.output["code"] == "result_too_large"


def test_an_endpoint_that_streams_hands_over_whole_what_is_over_the_limit(zoo, tmp_path, monkeypatch):
    import runpod

    put_together = documented_reader()
    monkeypatch.setattr(runpod, "api_key", "test-key")
    with RunPodPlatform() as platform:
        platform.max_done_bytes = 40_000
        monkeypatch.setattr(runpod, "endpoint_url_base", platform.url)
        env = worker_env(platform, zoo, tmp_path, MAX_RESPONSE_MB="0.04", STREAM_RESULTS="1")
        with WorkerProcess(HANDLER, env=env):
            endpoint = runpod.Endpoint("ep")
            asked = {"prompt": "x", "seed": 3, "num_images": 5, "width": 256, "height": 256, "num_inference_steps": 1}
            answer = put_together(endpoint.run({"input": asked | {"output": {"delivery": "stream"}}}).stream())
            assert len(json.dumps(answer)) > 1_000_000  # so it came in more than one chunk
            assert (answer["format"], answer["warnings"], len(answer["images"])) == ("png", [], 5)
            assert pixels(answer).shape == (256, 256, 3)
            small = put_together(endpoint.run({"input": {"prompt": "x", "seed": 4}}).stream())
            assert small["seed"] == 4
            broken = endpoint.run({"input": {"prompt": "x", "widht": 5}})
            with pytest.raises(ValueError, match="unknown_parameter"):
                put_together(broken.stream())
            record = platform.records[broken.job_id]
            assert (record.status, "width" in record.error, "output" in record.view()) == ("FAILED", True, False)


def test_sigterm_lets_the_running_job_finish(zoo, tmp_path):
    with RunPodPlatform(hold=1.0) as platform:
        with WorkerProcess(HANDLER, env=worker_env(platform, zoo, tmp_path)) as worker:
            job_id = platform.submit(slow(platform, 5, seed=1))
            assert platform.wait_until(lambda: platform.progress(job_id))
            worker.terminate()
            assert worker.wait() == 0
        record = platform.wait(job_id)
        assert record.status == "COMPLETED"
        assert record.output["seed"] == 1


def test_a_job_that_outlasts_the_grace_fails_with_a_reason(zoo, tmp_path):
    with RunPodPlatform(hold=1.0) as platform:
        env = worker_env(platform, zoo, tmp_path, SHUTDOWN_GRACE_SECONDS="0.2")
        with WorkerProcess(HANDLER, env=env) as worker:
            job_id = platform.submit(slow(platform, 20))
            assert platform.wait_until(lambda: platform.progress(job_id))
            worker.terminate()
            assert worker.wait() == 0
        record = platform.wait(job_id)
        assert record.status == "FAILED"
        assert (record.output["code"], record.output["retryable"]) == ("shutting_down", True)


@pytest.mark.slow
def test_sighup_reads_the_models_again(zoo, tmp_path):
    models = zoo / "reloaded.yaml"
    models.write_text((zoo / "models.yaml").read_text())
    with RunPodPlatform() as platform:
        env = worker_env(platform, zoo, tmp_path, MODELS_YAML=str(models))
        with WorkerProcess(HANDLER, env=env) as worker:
            platform.wait(platform.submit({"action": "models"}), 30)
            models.write_text("models: {tiny: {nonsense: 1}}")
            os.kill(worker.pid, signal.SIGHUP)
            worker.wait_for_output("models.yaml is not reloaded", 30)
            more = yaml.safe_load((zoo / "models.yaml").read_text())
            more["models"]["tiniest"] = more["models"]["tiny"] | {"aliases": []}
            models.write_text(json.dumps(more))
            os.kill(worker.pid, signal.SIGHUP)
            worker.wait_for_output("models.yaml is reloaded", 30)
            record = platform.wait(platform.submit({"action": "models"}), 30)
            assert "tiniest" in [model["id"] for model in record.output["models"]]


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"MODELS_YAML": "broken.yaml"}, "broken.yaml:2"),
        ({"DEFAULT_MODEL": "nosuch"}, "nosuch"),
        ({"VOLUME_DIR": "/proc/nowhere"}, "volume_writable"),
        ({"MODEL_ID": "file:missing/model.safetensors"}, "models_available RuntimeError: file:missing"),
    ],
)
def test_a_worker_that_cannot_serve_says_why_and_exits(zoo, tmp_path, broken, said):
    (tmp_path / "broken.yaml").write_text("models:\n  a: {nonsense: 1}\n")
    with RunPodPlatform() as platform:
        env = worker_env(platform, zoo, tmp_path, **broken)
        if "MODELS_YAML" in broken:
            env["MODELS_YAML"] = str(tmp_path / "broken.yaml")
        with WorkerProcess(HANDLER, env=env) as worker:
            assert worker.wait() == 1
        unhealthy = [seen for seen in platform.seen("ping") if seen.query.get("status") == "unhealthy"]
        assert any(said in f"{seen.query['check']} {seen.query['reason']}" for seen in unhealthy)
        assert platform.first_take_at is None
