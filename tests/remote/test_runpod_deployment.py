"""`deploy runpod` against a small RunPod: what it makes, what a second run does, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml

from tests.app.commands import failed, invoke, said
from tests.fakes.runpod_management import FakeRunPodManagement
from worker.app.settings import PROJECT_DIR
from worker.catalog.registry import load_registry
from worker.core.model import Tier
from worker.remote.deployment.runpod_api import RunPodApi
from worker.remote.deployment.runpod_fleet import CUDA_VERSIONS, FleetOrder, RunPodFleet, pools_of
from worker.remote.fleet_file import read_fleet
from worker.store.refs import parse_reference

REGISTRY = """
tiers:
  A10G: {vram_gb: 24, max_containers: 2, scaledown_s: 120, timeout_s: 900}
  L40S: {vram_gb: 48, max_containers: 3, runpod_pools: [ADA_48_PRO]}
  H200: {vram_gb: 141}
models:
  org/small: {architecture: sdxl, tasks: [text-to-image], tier: A10G}
  org/large: {architecture: flux1, tasks: [text-to-image], tier: L40S}
"""
IMAGE = "registry.example/worker:0.1.0"
BOTH = ("--data-center", "EU-RO-1", "--data-center", "US-TX-3", "--volume-gb", "200")


@pytest.fixture
def runpod(tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text(REGISTRY)
    with FakeRunPodManagement() as server:
        for name, value in {
            "MODELS_YAML": tmp_path / "models.yaml",
            "DEFAULT_MODEL": "org/small",
            "RUNPOD_API_KEY": server.key,
            "RUNPOD_API_URL": server.api_url,
        }.items():
            monkeypatch.setenv(name, str(value))
        yield server


def deploy(*arguments: str, image: str = IMAGE):
    return invoke("deploy", "runpod", "--image", image, *arguments)


def test_a_fleet_is_made_of_the_tiers_that_models_use(runpod):
    output = said(deploy("--env", "HF_TOKEN={{ RUNPOD_SECRET_HF_TOKEN }}"))
    (template,) = runpod.items["templates"].values()
    assert (template["image"], template["disk"], template["serverless"]) == (IMAGE, 100, True)
    assert sorted(item["name"] for item in runpod.items["serverless"].values()) == [
        "image-worker-a10g -fb",
        "image-worker-l40s -fb",
    ]
    small = runpod.named("serverless", "image-worker-a10g -fb")
    assert small["gpu"]["pools"] == ["AMPERE_24", "ADA_24"]
    assert small["workers"] == {"min": 0, "max": 2, "idleTimeout": 120}
    assert (small["type"], small["timeout"], small["image"]) == ("QUEUE", 960_000, IMAGE)
    assert small["env"] == {"RUNPOD_INIT_TIMEOUT": "800", "HF_TOKEN": "{{ RUNPOD_SECRET_HF_TOKEN }}"}
    assert runpod.named("serverless", "image-worker-l40s -fb")["gpu"]["pools"] == ["ADA_48_PRO"]
    assert "created endpoint image-worker-l40s (ser_2)" in output
    assert not runpod.items["network-volumes"]


def test_each_data_center_has_endpoints_and_a_volume_of_its_own(runpod):
    said(deploy(*BOTH))
    volumes = {item["dataCenter"]: item["id"] for item in runpod.items["network-volumes"].values()}
    assert volumes.keys() == {"EU-RO-1", "US-TX-3"}
    assert len(runpod.items["serverless"]) == 4
    endpoint = runpod.named("serverless", "image-worker-l40s-us-tx-3 -fb")
    assert (endpoint["dataCenterIds"], endpoint["networkVolumes"]) == (["US-TX-3"], [volumes["US-TX-3"]])
    assert endpoint["disk"] == 20


def test_a_dry_run_prints_the_plan_and_changes_nothing(runpod):
    output = said(deploy("--dry-run", *BOTH))
    assert runpod.calls == []
    lines = [line.split()[0] for line in output.splitlines()]
    assert lines == ["do"] + ["create"] * 7
    assert runpod.key not in output


def test_a_second_run_changes_nothing(runpod):
    said(deploy(*BOTH))
    runpod.calls.clear()
    assert said(deploy(*BOTH)) == "Everything is as it should be; nothing was changed.\n"
    assert runpod.calls == []


def test_only_what_differs_is_changed(runpod, tmp_path):
    said(deploy())
    endpoint = runpod.named("serverless", "image-worker-a10g -fb")
    endpoint["env"]["ADDED_IN_THE_CONSOLE"] = "1"
    endpoint["gpu"]["excludedTypes"] = ["NVIDIA L4"]
    runpod.calls.clear()
    (tmp_path / "models.yaml").write_text(REGISTRY.replace("max_containers: 2", "max_containers: 5"))
    plan = said(deploy("--dry-run"))
    assert [line.split() for line in plan.splitlines() if line.startswith("update")] == [
        ["update", "endpoint", "image-worker-a10g", "workers.max"]
    ]
    said(deploy())
    assert runpod.calls == [("PATCH", "serverless", {"workers": {"max": 5}})]
    assert endpoint["workers"] == {"min": 0, "max": 5, "idleTimeout": 120}
    runpod.calls.clear()
    said(deploy("--env", "LOG_FORMAT=json", image="registry.example/worker:0.2.0"))
    changes = [(method, what, sorted(body)) for method, what, body in runpod.calls]
    assert changes == [("PATCH", "templates", ["env", "image"])] + [("PATCH", "serverless", ["env", "image"])] * 2
    assert endpoint["env"] == {"RUNPOD_INIT_TIMEOUT": "800", "ADDED_IN_THE_CONSOLE": "1", "LOG_FORMAT": "json"}
    assert endpoint["gpu"]["excludedTypes"] == ["NVIDIA L4"]


def test_a_volume_that_comes_later_is_given_to_the_endpoint_that_is_there(runpod):
    said(deploy("--data-center", "EU-RO-1"))
    said(deploy("--data-center", "EU-RO-1", "--volume-gb", "50"))
    (volume,) = runpod.items["network-volumes"]
    assert runpod.named("serverless", "image-worker-a10g-eu-ro-1 -fb")["networkVolumes"] == [volume]


def test_a_tier_that_is_gone_is_named_and_left(runpod):
    said(deploy())
    result = deploy("--tier", "A10G")
    assert "endpoint image-worker-l40s (ser_2) is of no tier that is asked for" in result.stderr
    assert len(runpod.items["serverless"]) == 2


def test_load_balancing_endpoints_serve_http(runpod):
    said(deploy("--tier", "A10G", "--load-balancing"))
    (endpoint,) = runpod.items["serverless"].values()
    assert (endpoint["type"], endpoint["scaling"]["type"]) == ("LOAD_BALANCER", "REQUEST_COUNT")
    assert endpoint["ports"] == ["8000/http"]
    assert endpoint["env"]["STANDALONE_MODE"] == "1" and endpoint["env"]["PORT"] == "8000"


REFUSED = [
    (("--volume-gb", "100"), "network volume lies in one data centre"),
    (("--volume-gb", "5", "--data-center", "EU-RO-1"), "--volume-gb must be from 10 to 4096; 5 was given"),
    (("--tier", "B200"), "--tier B200 is no tier of models.yaml; there are A10G, L40S, H200"),
    (("--env", "NEVER_SET_HERE"), "--env NEVER_SET_HERE has no value"),
    (("--min-workers", "-1"), "--min-workers must be at least 0"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[words[0] for words, _ in REFUSED])
def test_what_cannot_be_is_refused_before_the_account_is_asked(runpod, arguments, sentence):
    assert sentence in failed(deploy(*arguments))
    assert runpod.requests == []


@pytest.mark.parametrize("image", ["registry.example/worker", "worker:latest", "localhost:5000/worker"])
def test_an_image_without_a_version_is_refused(runpod, image):
    assert "--image must name a version" in failed(deploy(image=image))
    assert runpod.requests == []


def test_without_a_key_it_says_where_to_get_one(runpod, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert "RUNPOD_API_KEY is not set" in failed(deploy())


def test_a_volume_never_shrinks_and_nothing_else_is_done_either(runpod):
    said(deploy("--data-center", "EU-RO-1", "--volume-gb", "200"))
    runpod.calls.clear()
    sentence = failed(deploy("--data-center", "EU-RO-1", "--volume-gb", "100", image="registry.example/worker:0.2.0"))
    assert "has 200 GB and cannot shrink to 100; say --volume-gb 200" in sentence
    assert runpod.calls == []


def test_a_queue_does_not_become_a_load_balancer(runpod):
    said(deploy())
    runpod.calls.clear()
    assert "has type QUEUE and the order says LOAD_BALANCER" in failed(deploy("--load-balancing"))
    assert runpod.calls == []


def test_two_of_one_name_are_nobodys_guess(runpod):
    said(deploy())
    twin = runpod.named("serverless", "image-worker-a10g -fb")
    runpod.items["serverless"]["ser_9"] = {**twin, "id": "ser_9"}
    assert "2 endpoints that are named image-worker-a10g (ser_1 and ser_9)" in failed(deploy())


def test_a_refused_key_is_told_and_never_shown(runpod, monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_someone_else")
    result = deploy("--json")
    assert result.exit_code == 1
    assert "RunPod refused RUNPOD_API_KEY (401)" in result.output
    assert "rpa_someone_else" not in result.output


def test_a_refusal_says_what_runpod_said_without_the_key(runpod):
    runpod.answers.append((422, {"detail": f"bad key {runpod.key}", "errors": ["$.gpu: nothing"]}, {}))
    assert failed(deploy()).endswith("RunPod refused GET /network-volumes (422): bad key … ($.gpu: nothing)")


def test_a_busy_api_is_asked_again_when_it_says(runpod):
    busy = (429, {"title": "Too Many Requests", "status": 429, "detail": "slow down"}, {"Retry-After": "3"})
    runpod.answers += [busy, (503, {}, {})]
    waits: list[float] = []
    order = FleetOrder("w", IMAGE, {"A10G": Tier(vram_gb=24)})
    steps = RunPodFleet(RunPodApi(runpod.key, runpod.api_url, sleep=waits.append), order).plan()
    assert [step.action for step in steps] == ["create", "create"]
    assert waits == [3.0, 2.0]


def test_what_creates_is_sent_once_whatever_is_answered(runpod):
    order = FleetOrder("w", IMAGE, {})
    fleet = RunPodFleet(RunPodApi(runpod.key, runpod.api_url), order)
    deployment = fleet.deploy()
    real = runpod.call
    # Three lists are asked first; then the template's creation is answered 500.
    ok = [(200, {name: []}, {}) for name in ("networkVolumes", "templates", "endpoints")]
    real(lambda: runpod.answers.extend([*ok, (500, {"detail": "oops"}, {})]))
    with pytest.raises(Exception, match="RunPod refused POST /templates"):
        next(deployment)
    assert [seen.method for seen in runpod.requests].count("POST") == 1


def test_the_endpoints_are_a_gateways_fleet(runpod, tmp_path):
    path = tmp_path / "fleet.yaml"
    said(deploy(*BOTH, "--fleet", path, "--dry-run"))
    assert not path.exists()
    said(deploy(*BOTH, "--fleet", path))
    registry = load_registry(tmp_path / "models.yaml", parse_source=parse_reference)
    members = {member.name: member for member in read_fleet(path, registry, {"RUNPOD_API_KEY": "k"}.get, tmp_path)}
    assert sorted(members) == [
        f"image-worker-{tier}-{place}" for tier in ("a10g", "l40s") for place in ("eu-ro-1", "us-tx-3")
    ]
    state = members["image-worker-l40s-us-tx-3"].platform.state()
    assert (state.kind, state.tier, state.vram_bytes, state.volume) == (
        "runpod",
        "L40S",
        48 * 2**30,
        "image-worker-us-tx-3",
    )
    assert (
        yaml.safe_load(path.read_text())["replicas"]["image-worker-l40s-us-tx-3"]["runpod"]
        in runpod.items["serverless"]
    )
    runpod.requests.clear()
    assert "is there already and is yours to edit" in failed(deploy(*BOTH, "--fleet", path))
    assert runpod.requests == []


def test_json_is_for_programs(runpod):
    answer = json.loads(said(deploy("--json")))
    assert [step["action"] for step in answer["steps"]] == ["create"] * 3
    assert all(step["id"] for step in answer["steps"])


def test_the_cuda_release_is_that_of_the_image_and_the_listing() -> None:
    hub = json.loads((Path(PROJECT_DIR) / ".runpod" / "hub.json").read_text())
    assert [*CUDA_VERSIONS] == hub["config"]["allowedCudaVersions"]


@pytest.mark.parametrize(
    ("vram_gb", "pools"), [(12, ("AMPERE_16",)), (40, ("AMPERE_48", "ADA_48_PRO")), (100, ("HOPPER_141",))]
)
def test_a_tiers_pools_are_those_with_the_least_memory_that_is_enough(vram_gb, pools) -> None:
    assert pools_of("T", Tier(vram_gb=vram_gb)) == pools
