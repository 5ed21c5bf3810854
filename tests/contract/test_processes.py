"""API_WORKERS=2: two real processes with the model in the box behind one port."""

import base64
import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.contract.test_standalone import start

pytestmark = pytest.mark.timeout(600)

KEY = "key-0123456789abcdef"
FROG = {"prompt": "a green frog", "num_inference_steps": 4}


def ask(worker, path, body=None, **headers):
    """The status and JSON of one request, on a connection of its own."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    try:
        with urllib.request.urlopen(urllib.request.Request(worker.origin + path, data, sent), timeout=60) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "null")


def run(worker, **fields):
    status, body = ask(worker, "/v2/x/run", {"input": FROG | fields})
    assert status == 200, body
    return body["id"]


def place(id):
    """The process that has a job, as its id says."""
    return id.rpartition("-")[2]


def until(condition, worker, seconds=120):
    ends = time.monotonic() + seconds
    while not (outcome := condition()):
        assert time.monotonic() < ends, worker.output[-3000:]
        time.sleep(0.1)
    return outcome


def settled(worker, id):
    def over():
        status, body = ask(worker, f"/v2/x/status/{id}")
        return (status, body) if status != 200 or body["status"] not in ("IN_QUEUE", "IN_PROGRESS") else None

    return until(over, worker)


def states(worker):
    try:
        return [each["status"] for each in ask(worker, "/health")[1].get("processes", [])]
    except OSError:  # not even the front listens yet
        return []


def children(pid):
    """The worker processes among the children of `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text()]


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_recipe_that_one_process_saves_is_served_by_all(tmp_path):
    (tmp_path / "recipes").mkdir()
    settings = {"API_WORKERS": "2", "API_KEYS": KEY, "ADMIN_KEYS": f"{KEY}-admin", "RECIPES": str(tmp_path / "recipes")}
    recipe = 'inputs:\n  prompt: {type: text}\nsteps:\n  base: {model: demo, prompt: "${inputs.prompt}"}\n'
    with start(tmp_path, **settings) as worker:
        until(lambda: states(worker) == ["ready", "ready"], worker)
        said = {"name": "plain", "text": recipe}
        status, body = ask(worker, "/admin/recipes/save", said, Authorization=f"Bearer {KEY}-admin")
        assert (status, body.get("served")) == (200, True), body
        # By itself, and by each process once it is told.
        until(lambda: worker.output.count("models.yaml is reloaded") == 3, worker)
        assert all("plain" in str(ask(worker, "/models")[1]) for _ in range(8))


@pytest.mark.slow
def test_jobs_are_found_by_every_connection_and_a_killed_process_is_replaced(tmp_path):
    settings = {"API_WORKERS": "2", "API_KEYS": KEY, "ADMIN_KEYS": f"{KEY}-admin", "TMPDIR": str(tmp_path)}
    with start(tmp_path, **settings) as worker:
        until(lambda: states(worker) == ["ready", "ready"], worker)
        assert "API_WORKERS=2 and no GPU: all processes share the CPU" in worker.output

        ids = [run(worker, seed=index % 2) for index in range(20)]
        answers = [settled(worker, id)[1] for id in reversed(ids)]
        assert [answer["status"] for answer in answers] == ["COMPLETED"] * 20
        images = [base64.b64decode(answer["output"]["image"]) for answer in answers]
        assert len(set(images)) == 2  # the same image of the same seed, whichever process drew it
        shares = [sum(id.endswith(f"-u{number}") for id in ids) for number in (1, 2)]
        assert min(shares) >= 5, shares
        jobs = ask(worker, "/v2/x/health")[1]["jobs"]
        assert (jobs["completed"], jobs["inQueue"]) == (20, 0)

        long = [run(worker, num_inference_steps=50, num_images=8, seed=number) for number in range(4)]
        assert {ask(worker, f"/v2/x/cancel/{id}", {})[1]["status"] for id in long} == {"CANCELLED"}
        assert {ask(worker, f"/v2/x/status/{id}")[1]["status"] for id in long} == {"CANCELLED"}

        again = {ask(worker, "/v2/x/run", {"input": FROG}, **{"Idempotency-Key": "k"})[1]["id"] for _ in range(6)}
        assert len(again) == 1
        tokens = [ask(worker, "/tokens", {})[1]["token"] for _ in range(2)]
        for id, token in zip((ids[0], ids[1], ids[0]), (*tokens, tokens[1]), strict=True):
            with urllib.request.urlopen(f"{worker.origin}/events/{id}?token={token}", timeout=60) as events:
                assert b"id: end\nevent: result\n" in events.read()

        doomed = []
        while {place(id) for id in doomed} != {"u1", "u2"}:  # a busy machine may hear late of a process's load
            assert len(doomed) < 20, doomed
            doomed.append(run(worker, num_inference_steps=50, num_images=8, seed=len(doomed)))
        pids = children(worker.pid)
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: len(children(worker.pid)) == 2 and children(worker.pid) != pids, worker)
        until(lambda: states(worker) == ["ready", "ready"], worker)
        lost = {place(id): set() for id in doomed}
        for id in doomed:
            lost[place(id)].add(settled(worker, id)[0])
        # jobs live in their process; the other one's are as they were
        assert sorted(lost.values(), key=min) == [{200}, {404}]
        assert settled(worker, run(worker))[1]["status"] == "COMPLETED"

        pids = children(worker.pid)
        os.killpg(worker.pid, signal.SIGINT)  # as Ctrl-C at a terminal
        assert worker.wait(60) == 0
        assert not any(map(is_there, pids))
        assert "Traceback" not in worker.output
        assert not [*tmp_path.glob("imgworker-*")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_processes_end_with_the_one_that_started_them(tmp_path, number):
    with start(tmp_path, API_WORKERS="2", WARM_UP="false") as worker:
        until(lambda: states(worker) == ["ready", "ready"], worker)
        pids = children(worker.pid)
        assert len(pids) == 2
        os.kill(worker.pid, number)
        assert worker.wait(60) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: not any(map(is_there, pids)), worker, 30)


def test_a_start_that_must_fail_says_so_once_and_starts_nothing(tmp_path):
    with start(tmp_path, API_WORKERS="2", MODELS_YAML=str(tmp_path / "none.yaml")) as worker:
        assert worker.wait(60) == 1
        assert worker.output.count("error: ") == 1
