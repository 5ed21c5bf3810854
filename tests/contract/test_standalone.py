"""STANDALONE_MODE=1 python handler.py: the real process with the model in the box, and the clients that people have."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import aiohttp
import pytest
import runpod
from PIL import Image
from runpod import AsyncioEndpoint, AsyncioJob
from websockets.exceptions import ConnectionClosed

from tests.asking import perform
from tests.conftest import PROJECT
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port
from tests.waiting import connect, until
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.service.limits.api_keys import new_key

pytestmark = pytest.mark.slow  # processes of their own

HANDLER = PROJECT / "handler.py"
FROG = {"prompt": "a green frog", "seed": 7, "num_inference_steps": 8}
SECTION = (PROJECT / "docs/api.md").read_text().split("\n## The HTTP server\n")[1].split("\n## ")[0]
README = (PROJECT / "README.md").read_text()
CURL = [
    line
    for block in re.findall(r"```bash\n(curl.*?)```", README + SECTION, re.S)
    for line in re.split(r"\n(?=curl)", block)
]
SNIPPETS = re.findall(r"```python\n(.*?)```", SECTION, re.S)


def start(tmp_path, **env):
    port = free_port()
    settings = {"STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(port), "DEVICE": "cpu"}
    settings |= {"VOLUME_DIR": str(tmp_path / "volume"), "HOME": str(tmp_path)}
    worker = WorkerProcess(HANDLER, env=settings | env, cwd=tmp_path)
    worker.origin = f"http://127.0.0.1:{port}"
    return worker


def status_of(url):
    try:
        return urllib.request.urlopen(url, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def until_ready(worker):
    seen = []

    def is_ready():
        seen.append(status_of(f"{worker.origin}/ping"))
        return seen[-1] == 200

    until(is_ready, lambda: worker.output)
    return seen


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with start(tmp_path_factory.mktemp("standalone")) as worker:
        seen = until_ready(worker)
        assert 204 in seen  # it answered before the engine was there
        yield worker


@pytest.fixture
def endpoint(served, monkeypatch):
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{served.origin}/v2")
    return runpod.Endpoint("mine", api_key="none")


def image(answer):
    return Image.open(io.BytesIO(base64.b64decode(answer["image"]))).convert("RGB")


def test_runpods_client_runs_waits_streams_and_cancels(endpoint):
    answer = endpoint.run_sync({"input": FROG})
    assert image(answer).size == (256, 256)
    job = endpoint.run(FROG)
    assert job.output(timeout=60)["image"] == answer["image"]
    assert job.status() == "COMPLETED"
    assert list(endpoint.run(FROG | {"seed": 8}).stream())[-1]["seed"] == 8
    long = endpoint.run(FROG | {"num_inference_steps": 50, "num_images": 8})
    assert long.cancel()["status"] == "CANCELLED"
    assert long.status() == "CANCELLED"
    assert endpoint.run_sync({"input": {"prompt": "x", "widht": 1}})["code"] == "unknown_parameter"
    health = endpoint.health()
    assert (health["jobs"]["completed"], health["jobs"]["inQueue"], health["workers"]["ready"]) == (3, 0, 1)
    assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}


async def test_runpods_asynchronous_client_does_too(served, endpoint):
    async with aiohttp.ClientSession() as session:
        asynchronous = AsyncioEndpoint("mine", session, api_key="none")
        job: AsyncioJob = await asynchronous.run(FROG)
        assert image(await job.output(timeout=60)).size == (256, 256)
        assert await job.status() == "COMPLETED"
        again = await asynchronous.run(FROG | {"seed": 9})
        assert [chunk async for chunk in again.stream()][-1]["seed"] == 9
        long = await asynchronous.run(FROG | {"num_inference_steps": 50, "num_images": 8})
        assert (await long.cancel())["status"] == "CANCELLED"
        assert (await asynchronous.health())["workers"]["ready"] == 1


def test_a_socket_sees_steps_a_preview_and_the_result_and_cancels(served):
    with connect(f"ws{served.origin.removeprefix('http')}/ws", max_size=None) as ws:
        ws.send(json.dumps({"type": "run", "id": "a", "input": FROG | {"previews": True}}))
        found = [json.loads(ws.recv(timeout=60))]
        while found[-1]["type"] not in ("result", "failed"):
            found.append(json.loads(ws.recv(timeout=60)))
        steps = [item for item in found if item.get("phase") == "inference"]
        assert [item["step"] for item in steps if item.get("message") != "upscaling"] == [*range(9)]
        assert steps[-1]["step"] == steps[-1]["total"]
        preview = next(item["preview"] for item in found if "preview" in item)
        assert Image.open(io.BytesIO(base64.b64decode(preview))).format == "JPEG"
        assert image(found[-1]).size == (256, 256)
        ws.send(json.dumps({"type": "run", "id": "b", "input": FROG | {"num_inference_steps": 50, "num_images": 8}}))
        while json.loads(ws.recv(timeout=60))["type"] != "progress":
            pass
        ws.send(json.dumps({"type": "cancel", "id": "b"}))
        last = {"type": "progress"}
        while last["type"] == "progress":
            last = json.loads(ws.recv(timeout=60))
        assert (last["type"], last["code"]) == ("failed", "job_cancelled")


@pytest.mark.parametrize("line", CURL)
def test_a_curl_line_of_the_page_works(served, line, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = line.replace("http://localhost:8000", served.origin)
    if "JOB" in command:
        body = json.dumps({"input": FROG}).encode()
        request = urllib.request.Request(f"{served.origin}/v2/local/run", body, {"Content-Type": "application/json"})
        command = command.replace("JOB", json.load(urllib.request.urlopen(request))["id"])
    if "@frog.png" in command:
        Image.new("RGB", (64, 64), "green").save(tmp_path / "frog.png")
    done = subprocess.run(
        ["bash", "-c", f"set -eo pipefail; {command}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    drawn = [path for path in tmp_path.iterdir() if path.name in command]
    for path in drawn:
        with Image.open(path) as found:
            assert found.format.lower() == path.suffix[1:]
    assert done.stdout or drawn
    assert '"error"' not in done.stdout.replace('"error":null', "")  # Replicate's predictions always have one


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["huggingface_hub", "openai"])
def test_a_snippet_of_the_page_works(served, snippet, tmp_path):
    code = snippet.replace("http://localhost:8000", served.origin)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "frog.png") as found:
        assert found.size == ((64, 64) if "64x64" in snippet else (256, 256))
    if "stream" in snippet:
        *on_the_way, last = done.stdout.split()  # how many previews there are depends on how fast it goes
        assert set(on_the_way) <= {"image_edit.partial_image"}
        assert last == "image_edit.completed"


async def test_an_image_of_the_server_is_the_one_that_the_worker_draws(endpoint, tmp_path):
    worker = build_worker(Settings(volume_dir=tmp_path, device="cpu", warm_up=False))
    drawn = await perform(worker, FROG, "here", lambda progress: None)
    assert image(endpoint.run_sync({"input": FROG})).tobytes() == image(drawn).tobytes()


def test_lines_carry_request_ids_and_no_prompt(served):
    request = urllib.request.Request(
        f"{served.origin}/run", json.dumps({"prompt": "a private matter"}).encode(),
        {"Content-Type": "application/json", "X-Request-ID": "find-me"},
    )  # fmt: skip
    assert urllib.request.urlopen(request, timeout=60).headers["x-request-id"] == "find-me"
    served.wait_for_output("find-me")
    assert "private matter" not in served.output
    assert "iVBOR" not in served.output


def test_health_is_up_on_its_own_port_and_the_platforms_port_wins(tmp_path):
    port, health = free_port(), free_port()
    with start(tmp_path, PORT=str(port), PORT_HEALTH=str(health), WARM_UP="false") as worker:
        worker.wait_for_output(f":{health}")
        until(lambda: status_of(f"http://127.0.0.1:{health}/ping") == 200)
        assert status_of(f"http://127.0.0.1:{port}/health") == 200
        assert status_of(f"{worker.origin}/health") is None
        worker._process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_keys_are_read_again_and_a_mistake_changes_nothing(tmp_path):
    file = tmp_path / "keys"
    keys = {name: new_key(name) for name in ("anna", "ben")}
    file.write_text(keys["anna"][1])

    def status(name):
        request = urllib.request.Request(
            f"{worker.origin}/models", headers={"Authorization": f"Bearer {keys[name][0]}"}
        )
        return status_of(request)

    with start(tmp_path, API_KEYS_FILE=str(file), WARM_UP="false") as worker:
        until_ready(worker)
        assert (status("anna"), status("ben")) == (200, 401)
        url, headers = f"ws{worker.origin.removeprefix('http')}/ws", {"Authorization": f"Bearer {keys['anna'][0]}"}
        with connect(url, additional_headers=headers) as socket:
            socket.send(json.dumps({"type": "run", "input": {"action": "status"}}))
            assert json.loads(socket.recv(timeout=60))["type"] == "accepted"
            assert json.loads(socket.recv(timeout=60))["type"] == "result"
            file.write_text(keys["ben"][1])
            worker._process.send_signal(signal.SIGHUP)
            worker.wait_for_output("API keys are reloaded: 1")
            assert (status("anna"), status("ben")) == (401, 200)
            socket.send(json.dumps({"type": "run", "input": {"action": "status"}}))
            with pytest.raises(ConnectionClosed, match="1008"):
                socket.recv(timeout=60)
        for broken in ("", "# nobody\n", f"{keys['anna'][1]}\nnot a line"):
            file.write_text(broken)
            before = worker.output.count("not reloaded")
            worker._process.send_signal(signal.SIGHUP)
            until(lambda: worker.output.count("not reloaded") > before)  # noqa: B023
            assert (status("anna"), status("ben")) == (401, 200)
        assert "the API keys are not reloaded: API_KEYS_FILE: keys:2: a line is name:sha256" in worker.output
        assert "not a line" not in worker.output
        assert not any(key in worker.output for key, _ in keys.values())


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"API_PORT": "0"}, "API_PORT"), ({"API_HOST": "300.1.1.1"}, "API_HOST"),
        ({"WEBHOOK_SECRET": "whsec_!"}, "WEBHOOK_SECRET"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_stops_the_start(tmp_path, env, said):
    with start(tmp_path, **env) as worker:
        assert worker.wait() != 0
    assert said in worker.output
    assert "Traceback" not in worker.output
