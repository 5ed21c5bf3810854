"""The fake platform and the worker's process, proved with the real SDK and the official client."""

from pathlib import Path

import pytest
import requests
import runpod.endpoint.runner as runner

from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from tests.waiting import until

HANDLER = """
import asyncio, runpod

async def handler(job):
    order = job["input"]
    if order.get("raise"):
        raise ValueError(order["raise"])
    for step in range(order.get("steps", 0)):
        runpod.serverless.progress_update(job, {"step": step})
        await asyncio.sleep(0.25)
    await asyncio.sleep(order.get("sleep", 0))
    if "answer" in order:
        return order["answer"]
    return {"echo": order, "extra": job.get("extra"), "blob": "x" * order.get("bytes", 0)}

if __name__ == "__main__":
    print("worker is up")
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda now: 8})
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One worker and its platform, shared: the SDK takes seconds to start."""
    script = tmp_path_factory.mktemp("handler") / "handler.py"
    script.write_text(HANDLER)
    with RunPodPlatform() as platform, WorkerProcess(script, env=platform.worker_env()) as worker:
        assert platform.wait_until(lambda: platform.first_take_at), worker.output
        yield platform, worker


class TestRunPodPlatform:
    def test_a_job_is_taken_by_the_held_poll_and_its_result_kept(self, served):
        platform, worker = served
        usual, platform.hold = platform.hold, 100.0
        polls = len(platform.seen("job-take"))
        assert platform.wait_until(lambda: len(platform.seen("job-take")) > polls)
        record = platform.wait(platform.submit({"prompt": "p"}, extra={"any": 1}))
        platform.hold = usual
        assert record.status == "COMPLETED"
        assert record.output == {"echo": {"prompt": "p"}, "extra": {"any": 1}, "blob": ""}
        assert record.raw_length > 20
        assert record.taken_at is not None
        assert "worker is up" in worker.output

    def test_an_error_and_an_exception_fail_the_job(self, served):
        platform, _ = served
        told = platform.submit({"answer": {"error": "no such model", "code": "x", "refresh_worker": True}})
        raised = platform.submit({"raise": "boom"})
        record = platform.wait(told)
        assert (record.status, record.error, record.output) == ("FAILED", "no such model", {"code": "x"})
        assert record.stop_pod
        assert "boom" in platform.wait(raised).error

    def test_a_cancelled_job_is_stopped_and_posts_nothing(self, served):
        platform, worker = served
        job = platform.submit({"sleep": 60})
        platform.wait_taken(job)
        # a job taken but not yet begun cannot be stopped: the SDK drops the signal
        assert platform.wait_until(lambda: job in _pinged(platform))
        platform.cancel(job)
        after = platform.wait(platform.submit({"prompt": "next"}))
        assert after.status == "COMPLETED"
        record = platform.records[job]
        assert record.status == "CANCELLED"
        assert record.results == []
        worker.wait_for_output("Job stopped.")
        # the ping names the jobs in hand: the stopped one is gone
        seen = len(platform.seen("ping"))
        assert platform.wait_until(lambda: len(platform.seen("ping")) > seen + 1, 5)
        assert job not in platform.seen("ping")[-1].query.get("job_id", "")

    def test_a_job_over_its_time_is_stopped(self, served):
        platform, _ = served
        record = platform.wait(platform.submit({"sleep": 60}, policy={"executionTimeout": 500}), 10)
        assert record.status == "TIMED_OUT"

    def test_several_jobs_are_taken_in_one_batch_and_pings_name_them(self, served):
        platform, _ = served
        jobs = ["b0", "b1", "b2"]
        platform.submit_raw(*({"id": job, "input": {"sleep": 2}} for job in jobs))
        for job in jobs:
            platform.wait_taken(job)
        assert platform.wait_until(lambda: set(jobs) <= set(_pinged(platform)))
        assert [platform.wait(job).status for job in jobs] == ["COMPLETED"] * 3
        assert any("job-take-batch" in request.path for request in platform.requests)
        taken = [platform.records[job].taken_at for job in jobs]
        assert max(taken) - min(taken) < 0.1

    def test_progress_is_kept_apart_from_the_result(self, served):
        platform, _ = served
        job = platform.submit({"steps": 3})
        record = platform.wait(job)
        assert platform.progress(job) == [{"step": 0}, {"step": 1}, {"step": 2}]
        assert record.late_progress == []
        assert record.output["echo"] == {"steps": 3}

    def test_late_progress_is_told_apart(self, served):
        platform, _ = served
        record = platform.wait(platform.submit({"prompt": "p"}))
        url = f"{platform.url}/ep/job-done/pod123/{record.id}?gpu=x&isStream=false"
        body = {"status": "IN_PROGRESS", "output": {"step": 9}}
        requests.post(url, json=body, headers={"Authorization": "test-key"}, timeout=60)
        assert [post.body for post in record.late_progress] == [body]
        assert record.status == "COMPLETED"

    def test_a_redelivered_job_runs_again_under_one_record(self, served):
        platform, _ = served
        job = platform.submit({"prompt": "p"}, id="same")
        platform.wait(job)
        platform.submit_raw({"id": job, "input": {"prompt": "again"}})
        record = platform.wait(job, results=2)
        assert record.deliveries == 2
        assert record.output["echo"] == {"prompt": "again"}

    def test_a_refused_result_is_sent_again(self, served):
        platform, _ = served
        platform.fail_done(1, 500)
        record = platform.wait(platform.submit({"prompt": "p"}))
        assert [post.http_status for post in record.refused] == [500]
        assert len(record.results) == 1

    def test_a_result_over_the_limit_is_refused_and_lost(self, served):
        platform, _ = served
        platform.max_done_bytes = 1000
        try:
            job = platform.submit({"bytes": 2000})
            assert platform.wait_until(lambda: platform.records[job].refused, 5)
            with pytest.raises(TimeoutError, match="refused: 1"):
                platform.wait(job, 0.5)
        finally:
            platform.max_done_bytes = None

    def test_a_result_that_is_not_json_is_refused(self, served):
        platform, _ = served
        job = platform.submit({"answer": {"x": float("nan")}})
        assert platform.wait_until(lambda: platform.records[job].refused, 5)
        assert not platform.records[job].final

    def test_a_failed_take_loses_no_job(self, served):
        platform, worker = served
        platform.fail_take(2, 500)
        # the poll held open already takes the first job, those after it are refused
        jobs = [platform.submit({"prompt": "p"})]
        worker.wait_for_output("Failed to get job", 5)
        jobs.append(platform.submit({"prompt": "p"}))
        assert [platform.wait(job).status for job in jobs] == ["COMPLETED"] * 2

    def test_a_failed_job_is_retried_under_its_id_and_a_finished_one_is_not(self, served):
        platform, _ = served
        failed, done = platform.submit({"raise": "boom"}), platform.submit({"prompt": "p"})
        platform.wait(done)
        platform.wait(failed)
        headers, url = {"Authorization": "Bearer test-key"}, f"{platform.url}/ep/retry"
        assert requests.post(f"{url}/{failed}", headers=headers, timeout=60).json()["id"] == failed
        assert platform.wait(failed, results=2).deliveries == 2
        assert requests.post(f"{url}/{done}", headers=headers, timeout=60).status_code == 400

    def test_a_streamed_chunk_reaches_the_caller_once(self, served):
        platform, _ = served
        job = platform.submit({"prompt": "p"})
        platform.wait(job)
        headers, base = {"Authorization": "test-key"}, f"{platform.url}/ep"
        requests.post(f"{base}/job-stream/pod123/{job}?isStream=false", json={"output": 1}, headers=headers, timeout=60)
        answers = [requests.get(f"{base}/stream/{job}", headers=headers, timeout=60).json() for _ in range(2)]
        assert [answer["stream"] for answer in answers] == [[{"output": 1}], []]

    def test_a_wrong_key_is_refused(self, served):
        platform, _ = served
        assert requests.get(f"{platform.url}/ep/health", timeout=60).status_code == 401

    def test_the_official_client_runs_reads_and_cancels(self, served, monkeypatch):
        platform, _ = served
        monkeypatch.setattr("runpod.endpoint_url_base", platform.url)
        endpoint = runner.Endpoint("ep", api_key="test-key")
        assert endpoint.run_sync({"prompt": "sync"}, timeout=60)["echo"] == {"prompt": "sync"}
        job = endpoint.run({"input": {"prompt": "async"}})
        assert job.output(timeout=60)["echo"] == {"prompt": "async"}
        assert job.status() == "COMPLETED"
        endless = endpoint.run({"sleep": 60})
        platform.wait_taken(endless.job_id)
        assert endpoint.health()["jobs"]["inProgress"] >= 1
        assert endless.cancel()["status"] == "CANCELLED"
        assert endless.status() == "CANCELLED"
        assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}


def _pinged(platform):
    return [job for request in platform.seen("ping") for job in request.query.get("job_id", "").split(",")]


class TestWorkerProcess:
    def test_nothing_survives_the_context(self, tmp_path):
        script = tmp_path / "handler.py"
        script.write_text(
            "import multiprocessing, time\n"
            "if __name__ == '__main__':\n"
            "    child = multiprocessing.Process(target=time.sleep, args=(60,))\n"
            "    child.start()\n"
            "    print(f'child={child.pid};')\n"
            "    time.sleep(60)\n"
        )
        with WorkerProcess(script) as worker:
            child = int(worker.wait_for_output(";").split("=")[1].split(";")[0])
            assert worker.returncode is None
        assert worker.returncode == -9
        until(lambda: not _alive(child))

    def test_the_environment_is_the_given_one_alone(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MODEL_ID", "leaked")
        script = tmp_path / "show.py"
        script.write_text("import os, sys; print(os.environ.get('MODEL_ID'), os.environ['GIVEN'], sys.argv[1:])")
        with WorkerProcess(script, "--flag", env={"GIVEN": "é"}) as worker:
            assert worker.wait() == 0
        assert worker.output == "None é ['--flag']\n"

    def test_sigterm_ends_a_worker_and_a_slow_one_is_reported(self, tmp_path):
        script = tmp_path / "sleep.py"
        script.write_text("import time; print('ready'); time.sleep(60)")
        with WorkerProcess(script) as worker:
            worker.wait_for_output("ready")
            with pytest.raises(TimeoutError, match="ready"):
                worker.wait(0.1)
            with pytest.raises(TimeoutError):
                worker.wait_for_output("never", 0.1)
            worker.terminate()
            assert worker.wait() == -15


def _alive(pid):
    try:
        # a zombie waits for init to collect it: it runs no more
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
