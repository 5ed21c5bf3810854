"""A worker's process killed with jobs in its hands: each is answered by another one, once. No model is loaded here."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import PROJECT
from tests.fakes.web_worker import WebGateway, WebWorker

JOBS = 12
# A worker over a fake engine that answers nothing: it says its address, and works until it is killed.
HELD = """
import sys, threading
from pathlib import Path
from tests.fakes.web_worker import WebWorker
with WebWorker(Path(sys.argv[1])) as worker:
    worker.context.engine.gate.clear()
    print(worker.origin, flush=True)
    threading.Event().wait()
"""


def taken(origin):
    """Take the port of a server that is no more, so that no other test's server answers there; calls are refused."""
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", int(origin.rpartition(":")[2])))
    return port


@pytest.fixture
def held(tmp_path):
    program = [sys.executable, "-c", HELD, str(tmp_path / "held")]
    with subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_job_of_a_worker_that_is_killed_is_drawn_once_by_another(tmp_path, held):
    process, origin = held
    with WebWorker(tmp_path / "well") as well:
        # First the one, then the other: FastAPI hides a warning at an app's first request, and Python's list of hidden
        # warnings is one for all threads.
        assert well.http.get("/health").status_code == 200
        replicas = {"a": {"url": origin, "concurrency": 6}, "b": {"url": well.origin}}
        with (
            WebGateway(tmp_path / "gateway", replicas, timeout_seconds=280) as gateway,
            ThreadPoolExecutor(JOBS) as crowd,
        ):

            def ask(seed):
                body = {"prompt": "an apple", "width": 64, "height": 64, "seed": seed}
                answer = gateway.http.post("/run", json=body, headers={"Idempotency-Key": f"{seed}"}, timeout=280)
                return answer.status_code, answer.json()

            well.context.engine.gate.clear()  # else it would have all of them by itself
            asked = [crowd.submit(ask, seed) for seed in range(JOBS)]
            lost = gateway.gateway.members.all["a"]
            while len(lost.jobs) < 2:
                time.sleep(0.02)
            process.kill()
            process.wait()
            with taken(origin):
                well.context.engine.gate.set()
                answers = [work.result() for work in asked]
    assert [status for status, _ in answers] == [200] * JOBS, answers
    assert [body["output"]["seed"] for _, body in answers] == list(range(JOBS))
    assert {body["output"]["placement"]["replica"] for _, body in answers} == {"b"}
    moved = [body for _, body in answers if body["output"]["placement"]["attempts"] > 1]
    assert len(moved) >= 2
    assert sorted(job.seeds[0] for job in well.context.engine.ran) == list(range(JOBS))
