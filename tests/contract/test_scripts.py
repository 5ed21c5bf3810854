"""The scripts beside the worker, run against one."""

import subprocess

import pytest

from tests.fakes.web_worker import WebWorker
from tests.transport.web.uploads import png
from tests.waiting import LIMIT_S
from worker.app.settings import PROJECT_DIR

SCRIPT = PROJECT_DIR / "scripts" / "concurrency_test.sh"


def concurrency_test(url, *arguments, **variables):
    import os

    environment = {**os.environ, "URL": url, **variables}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_every_edit_that_is_sent_at_once_is_drawn(tmp_path):
    image = tmp_path / "in.png"
    image.write_bytes(png(64, 64))
    with WebWorker(tmp_path, api_keys="a key of sixteen characters") as served:
        done = concurrency_test(served.origin, image, "3", STEPS="4", KEY="a key of sixteen characters")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("3 drawn, 0 told to come back, 0 wrong\n")
        jobs = served.context.engine.ran
        assert sorted(job.seeds for job in jobs) == [(1,), (2,), (3,)]
        assert {job.params["num_inference_steps"] for job in jobs} == {4}
        done = concurrency_test(served.origin, image, "1")  # without the key
    assert done.returncode == 1
    assert "unauthenticated" in done.stdout


def test_a_busy_worker_is_no_fault_and_an_image_of_its_own_is_sent(tmp_path):
    with WebWorker(tmp_path, max_concurrent_jobs=1, max_queued_jobs=0) as served:
        served.context.engine.gate.clear()
        held = subprocess.Popen([SCRIPT, "", "1"], env={"URL": served.origin, "PATH": "/usr/bin:/bin"}, text=True)
        assert served.context.engine.inside.wait(LIMIT_S)
        done = concurrency_test(served.origin, "", "2")
        served.context.engine.gate.set()
        assert held.wait(LIMIT_S) == 0
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 drawn, 2 told to come back, 0 wrong")


@pytest.mark.parametrize(("arguments", "said"), [(("", "none"), "REQUESTS"), (("nowhere.png",), "nowhere.png")])
def test_what_cannot_be_sent_is_said(arguments, said):
    done = concurrency_test("http://127.0.0.1:9", *arguments)
    assert (done.returncode, said in done.stderr) == (2, True)


def test_a_worker_that_is_not_there_is_a_fault():
    done = concurrency_test("http://127.0.0.1:9", "", "1")
    assert done.returncode == 1
    assert "0 drawn, 0 told to come back, 1 wrong" in done.stdout
