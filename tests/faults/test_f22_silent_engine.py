"""F22: an engine that never answers again. The worker says so, answers everybody and ends, to be started anew."""

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.fakes.engine import shelf
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port
from worker.app.signals import LOST_STATUS

SCRIPT = Path(__file__).parents[1] / "fakes/silent_worker.py"
SILENCE_S = 2
# The grace of the script, how often the watchdog looks, and the time to be heard, with room for a busy machine.
AT_MOST_S = 60


def environment(folder, **extra):
    values = {"MODELS_YAML": str(shelf(folder)), "DEFAULT_MODEL": "tiny", "VOLUME_DIR": str(folder / "volume")}
    return values | {"SILENCE_SECONDS": str(SILENCE_S), "WARM_UP": "0", "DEVICE": "cpu"} | extra


def asked(url, body=None):
    """The status and the JSON of an answer; (0, {}) before anybody answers."""
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


def until(found, seconds=60):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


@pytest.mark.slow
def test_over_http_it_says_so_answers_and_ends_with_its_status(tmp_path, figures):
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    env = environment(tmp_path, STANDALONE_MODE="1", API_HOST="127.0.0.1", API_PORT=str(port))
    with WorkerProcess(SCRIPT, env=env) as worker:
        until(lambda: asked(f"{origin}/ready")[0] == 200)
        assert asked(f"{origin}/run", {"input": {"prompt": "one"}})[0] == 200
        answers = []
        body = {"input": {"prompt": "two", "timeout_s": 600}}
        caller = threading.Thread(target=lambda: answers.append(asked(f"{origin}/run", body)))
        started = time.monotonic()
        caller.start()
        _, ready = until(lambda: (answer := asked(f"{origin}/ready"))[0] == 503 and answer)
        told_after = time.monotonic() - started - SILENCE_S
        figures("F22", "an engine that hangs is told of", told_after, "s", at_most=10, momentary=True)
        assert "sign of life" in ready["reason"]
        assert asked(f"{origin}/ping")[0] == 503
        _, refused = asked(f"{origin}/run", {"input": {"prompt": "three"}})
        assert refused["code"] in {"overloaded", "device_lost"}
        assert refused["retryable"]
        caller.join(AT_MOST_S)
        assert answers[0][0] == 503
        assert answers[0][1]["code"] == "device_lost"
        assert worker.wait(AT_MOST_S) == LOST_STATUS
    figures("F22", "a hung server has ended", time.monotonic() - started, "s", at_most=AT_MOST_S, momentary=True)


@pytest.mark.slow
def test_on_runpod_the_job_asks_for_another_worker_and_the_process_ends(tmp_path, figures):
    with RunPodPlatform() as platform:
        env = platform.worker_env() | environment(tmp_path)
        with WorkerProcess(SCRIPT, env=env) as worker:
            platform.wait(platform.submit({"prompt": "one"}), 60)
            job = platform.submit({"prompt": "two", "timeout_s": 600})
            started = time.monotonic()
            record = platform.wait(job, AT_MOST_S)
            assert record.status == "FAILED"
            assert "sign of life" in json.dumps(record.error)
            assert worker.wait(AT_MOST_S) == LOST_STATUS
    figures(
        "F22", "a hung worker of RunPod has ended", time.monotonic() - started, "s", at_most=AT_MOST_S, momentary=True
    )
