"""A gateway before workers with fake engines, on real ports: what callers see, and what the workers are asked."""

import base64
import json
import subprocess
import sys
import threading

import pytest

from tests.conftest import PROJECT
from tests.fakes.engine import shelf
from tests.fakes.web_worker import WebGateway, WebWorker
from tests.transport.web.uploads import png
from tests.waiting import until
from worker.net.peer import Peer

APPLE = {"prompt": "an apple", "width": 64, "height": 64}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with WebWorker(tmp_path_factory.mktemp("worker")) as served:
        yield served


@pytest.fixture(scope="module")
def asked():
    """The bodies of all that a gateway asks of its workers, but for their health."""
    bodies, ask = [], Peer.ask

    async def recorded(self, method, path, body=None, **options):
        if path != "/health":
            bodies.append(body)
        return await ask(self, method, path, body, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peer, "ask", recorded)
        yield bodies


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, worker, asked):
    root = tmp_path_factory.mktemp("gateway")
    registry = json.loads(shelf(root).read_text())
    registry["tiers"] = {"small": {"vram_gb": 12}, "large": {"vram_gb": 80}}
    registry["models"]["huge"] = registry["models"]["any"] | {"tier": "large", "min_vram_gb": 70}
    path = root / "tiers.yaml"
    path.write_text(json.dumps(registry))
    replicas = {"one": {"url": worker.origin, "usd_per_hour": 3.6, "tier": "small"}}
    with WebGateway(root, replicas, models_yaml=path) as served:
        yield served


def test_an_image_comes_through_as_it_was_encoded_with_the_place_where_it_was_made(gateway, worker):
    sent = APPLE | {"seed": 7, "output": {"format": "webp", "metadata": True}}
    through = gateway.http.post("/runsync", json={"input": sent | {"model": "tiny"}}).json()["output"]
    direct = worker.http.post("/runsync", json={"input": sent | {"model": "tiny"}}).json()["output"]
    assert through["image"] == direct["image"]
    placement = through["placement"]
    assert (placement["replica"], placement["tier"], placement["attempts"]) == ("one", "small", 1)
    assert "tiny" in placement["reason"]
    assert through["usage"]["cost_usd"] == pytest.approx(through["usage"]["gpu_seconds"] / 1000, abs=1e-6)


def test_media_are_sent_on_as_they_came(gateway, asked):
    picture = base64.b64encode(png(64, 64)).decode()
    before = len(asked)
    answer = gateway.http.post("/run", json={"prompt": "blue", "image": picture, "strength": 0.5, "seed": 3})
    assert answer.status_code == 200, answer.text
    sent = json.loads(asked[before])["input"]
    assert sent["image"] == picture
    assert {name: sent[name] for name in ("model", "seed", "strength")} == {"model": "tiny", "seed": 3, "strength": 0.5}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/run", {"prompt": "x", "model": "nobody/nothing"}, 400),
        ("/run", {"prompt": "x", "widht": 64}, 400),
        ("/run", {"prompt": "x", "width": 4096}, 400),
        ("/run", {"prompt": "x", "image": "bm90IGFuIGltYWdl"}, 400),
        ("/run", {"prompt": "x", "num_images": 99}, 400),
        ("/run", {"action": "schema", "model": "tiny"}, 200),
        ("/run", {"action": "inspect", "model": "tiny"}, 200),
        ("/run", {"action": "plan", "model": "tiny"}, 200),
        ("/run", {"action": "models"}, 200),
        ("/run", {"prompt": "x", "model": "huge"}, 400),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_the_gateway_knows_itself_wakes_no_worker(gateway, asked, path, body, status):
    before = len(asked)
    answer = gateway.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert len(asked) == before


def test_a_model_too_large_for_every_tier_is_refused_with_the_reason(gateway):
    answer = gateway.http.post("/run", json={"prompt": "x", "model": "huge"}).json()
    assert answer["code"] == "unsupported_model"
    assert "one" in answer["error"], answer


def test_the_list_of_models_has_their_tiers(gateway):
    tiers = {model["id"]: model["tier"] for model in gateway.http.get("/diffusers/models").json()["models"]}
    assert tiers["huge"] == "large"
    assert tiers["tiny"] is None


def test_quota_and_key_are_asked_for_at_the_gateway(tmp_path, worker, asked):
    settings = {"api_keys": "a-key-of-somebody-000001", "rate_limit_per_minute": 1}
    with WebGateway(tmp_path, {"one": {"url": worker.origin}}, **settings) as served:
        before = len(asked)
        assert served.http.post("/run", json=APPLE).status_code == 401
        key = {"Authorization": "Bearer a-key-of-somebody-000001"}
        assert served.http.post("/run", json=APPLE, headers=key).status_code == 200
        refused = served.http.post("/run", json=APPLE, headers=key)
        assert (refused.status_code, refused.headers["retry-after"].isdecimal()) == (429, True)
        assert len(asked) == before + 1


def test_progress_and_previews_pass_and_a_cancel_stops_the_step(gateway, worker):
    engine = worker.context.engine
    engine.gate.clear()
    try:
        id = gateway.http.post("/v2/x/run", json={"input": APPLE}).json()["id"]
        with gateway.http.stream("GET", f"/events/{id}") as events:
            lines = events.iter_lines()
            assert next(line for line in lines if line.startswith("event: ")) == "event: progress"
            assert gateway.http.post(f"/v2/x/cancel/{id}").json()["status"] == "CANCELLED"
            list(lines)
        assert until(lambda: not engine.inside.is_set()), "the worker's step was not stopped"
    finally:
        engine.gate.set()


def test_the_deadline_is_the_gateways(gateway, worker):
    engine = worker.context.engine
    engine.gate.clear()
    try:
        answer = gateway.http.post("/run", json=APPLE | {"timeout_s": 0.5})
        assert (answer.status_code, answer.json()["code"]) == (504, "job_timeout")
    finally:
        engine.gate.set()


def test_too_many_at_once_are_told_when_to_come_back(tmp_path, worker, asked):
    limits = {"max_concurrent_jobs": 2, "max_queued_jobs": 2}
    with WebGateway(tmp_path, {"one": {"url": worker.origin}}, **limits) as served:
        answers = []

        def ask():
            answers.append(served.http.post("/run", json=APPLE))

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = {answer.status_code for answer in answers}
        assert statuses <= {200, 429}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        assert 200 in statuses


def test_no_torch_and_no_diffusers_in_the_process(tmp_path, worker, asked):
    """In a process of its own, which also answers a request before it says what it has imported."""
    (tmp_path / "fleet.yaml").write_text(json.dumps({"replicas": {"one": {"url": worker.origin}}}))
    program = """
import ast, sys
from fastapi.testclient import TestClient
import pydantic
made, parsed = [], []
adapt, parse = pydantic.TypeAdapter.__init__, ast.parse
pydantic.TypeAdapter.__init__ = lambda self, *args, **options: (made.append(args), adapt(self, *args, **options))[1]
ast.parse = lambda *args, **options: (parsed.append(args), parse(*args, **options))[1]
from worker.app.settings import read_settings
from worker.app.gateway import build_gateway
from worker.app.server import build_app
app = build_app(build_gateway(read_settings()))
print(len(sys.modules), len(made), len(parsed))
with TestClient(app) as client:
    answer = client.post("/run", json={"prompt": "x", "widht": 1})
    assert answer.status_code == 400, answer.text
    assert client.get("/models").status_code in (200, 404)
heavy = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "scipy", "runpod", "boto3"}
print(sorted(heavy & sys.modules.keys()))
"""
    env = {"PATH": "/usr/bin:/bin", "FLEET_FILE": str(tmp_path / "fleet.yaml"), "GATEWAY_MODE": "1"}
    env |= {"VOLUME_DIR": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    ran = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True)
    counts, *_, heavy = ran.stdout.splitlines() or ["", ""]
    assert (ran.returncode, heavy) == (0, "[]"), ran.stderr[-2000:]
    # What its start takes, by counts that are the same on every machine: seconds are in the benchmarks.
    modules, adapters, trees = map(int, counts.split())
    assert modules <= 1_250
    assert adapters <= 120  # validators of parameters; answers are only described, once somebody asks
    assert trees <= 40  # of diffusers' source text
