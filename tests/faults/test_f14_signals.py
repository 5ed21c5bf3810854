"""F14: a server is told to stop while it works, and is killed: what is under way ends well, or starts anew."""

import asyncio
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from tests.conftest import PROJECT
from tests.fakes.web_worker import WebWorker
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port
from tests.waiting import LIMIT_S
from worker.app.server import _FAREWELL_S
from worker.app.signals import hear_shutdown

SLOW = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 30}


def server(folder):
    port = free_port()
    env = {"STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(port), "DEVICE": "cpu"}
    env |= {"VOLUME_DIR": str(folder / "volume"), "HOME": str(folder), "WARM_UP": "false"}
    worker = WorkerProcess(PROJECT / "handler.py", env=env, cwd=folder)
    worker.origin = f"http://127.0.0.1:{port}"
    return worker


def post(worker, body):
    request = urllib.request.Request(
        f"{worker.origin}/run", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return json.load(urllib.request.urlopen(request, timeout=120))
    except urllib.error.HTTPError as error:
        return json.load(error)


@pytest.mark.slow
def test_a_server_finishes_its_job_after_sigterm_and_ends_with_0(tmp_path, figures):
    answers = []
    with server(tmp_path) as worker:
        until_running(worker, 0)
        caller = threading.Thread(target=lambda: answers.append(post(worker, SLOW)))
        caller.start()
        until_running(worker)
        worker.terminate()
        status = worker.wait(90)
        caller.join(30)
    assert answers[0]["status"] == "COMPLETED"
    figures("F14", "exit status of a server after SIGTERM, its job answered", status, "", at_most=0, at_least=0)


@pytest.mark.slow
def test_a_server_that_was_killed_amid_a_job_starts_again_and_answers_it(tmp_path, figures):
    def forsaken():
        with pytest.raises(OSError):
            post(worker, SLOW)

    with server(tmp_path) as worker:
        until_running(worker, 0)
        thread = threading.Thread(target=forsaken)
        thread.start()
        until_running(worker)
        worker.kill()
        thread.join(30)
        assert worker.returncode == -signal.SIGKILL
    with server(tmp_path) as worker:
        until_running(worker, 0)
        answer = post(worker, SLOW | {"num_inference_steps": 1})
    figures("F14", "jobs answered by a server started after SIGKILL", "image" in answer, "", at_least=1)


def until_running(worker, jobs=1):
    """Return once the server says that so many jobs run."""
    for _ in range(2_000):
        with suppress(urllib.error.URLError), urllib.request.urlopen(f"{worker.origin}/health", timeout=30) as answer:
            if json.load(answer)["jobs"]["running"] == jobs:
                return
        time.sleep(0.03)
    raise AssertionError(worker.output)


@pytest.mark.slow
def test_a_server_waits_for_a_job_whose_caller_is_gone(tmp_path):
    """Nobody's connection holds the server then, and results that are sent out have a few seconds only."""
    with WebWorker(tmp_path, shutdown_grace_seconds=60) as served:
        engine = served.context.engine
        engine.gate.clear()
        assert served.http.post("/v2/any/run", json={"input": {"prompt": "an apple"}}).status_code == 200
        assert engine.inside.wait(LIMIT_S)
        threading.Timer(_FAREWELL_S + 2, engine.gate.set).start()
    (log,) = tmp_path.rglob("usage/*.jsonl")
    assert [json.loads(line)["outcome"] for line in log.read_text().splitlines()] == ["ok"]


async def test_jobs_have_their_time_from_the_signal_on():
    """Not only once the server has seen its connections end: jobs are stopped in words before they would be cut off."""
    graces, heard = asyncio.Queue(), []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        hear_shutdown(graces.put, 7.0)
        signal.raise_signal(signal.SIGTERM)
        assert await asyncio.wait_for(graces.get(), 60) == 7.0
        assert heard == [signal.SIGTERM], "whoever listened before hears it too"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_pipeline_that_wants_the_process_to_end_fails_its_job_alone(tmp_path, figures, ending):
    with WebWorker(tmp_path) as served:
        served.context.engine.failures = [ending]
        answer = served.http.post("/run", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        after = served.http.post("/run", json={"prompt": "x"})
        what = f"jobs answered after a pipeline raised {type(ending).__name__}"
        figures("F14", what, after.status_code == 200, "", at_least=1)
