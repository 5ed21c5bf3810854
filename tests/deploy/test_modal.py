"""The worker on Modal: the real SDK deploys to a control plane of ours, which runs the classes as containers."""

import base64
import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.conftest import PROJECT
from tests.fakes.modal_platform import ModalPlatform

OVERRIDES = {
    "DIFFUSERS_A10G_MAX_CONTAINERS": "3",
    "DIFFUSERS_A10G_SCALEDOWN": "60",
    "DIFFUSERS_L40S_TIMEOUT": "900",
}
PROMPT = "a red apple"
MODELS = {"tiny": "sd1", "other": "sd3"}


def choices(models_yaml: Path, zoo: Path) -> dict[str, str]:
    """The settings that the operator chose, as environment variables."""
    return {
        "MODELS_YAML": str(models_yaml),
        "DEFAULT_MODEL": "tiny",
        "DEVICE": "cpu",
        "WARM_UP": "false",
        "VOLUME_DIR": str(models_yaml.parent / "volume"),
        "ALLOWED_MODEL_DIRS": str(zoo),
        "TRIAL_LOADS": "off",
    }


@pytest.fixture(scope="module")
def models_yaml(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of the two tiers, with two models on one of them."""
    path = tmp_path_factory.mktemp("modal") / "models.yaml"
    tiny = {"tier": "A10G", "defaults": {"num_inference_steps": 2}}
    models = {
        "tiny": {"source": f"file:{zoo}/models/sd1", **tiny},
        "other": {"source": f"file:{zoo}/models/sd3", **tiny},
    }
    tiers = {"A10G": {"vram_gb": 24}, "L40S": {"vram_gb": 48}}
    path.write_text(json.dumps({"tiers": tiers, "models": models}))
    return path


@pytest.fixture(scope="module")
def modal_platform(models_yaml: Path, zoo: Path) -> Iterator[tuple[ModalPlatform, ModuleType]]:
    """The control plane, and the file that was deployed to it."""
    with pytest.MonkeyPatch.context() as environment:
        containers: dict[str, Any] = {}
        with ModalPlatform(lambda name: containers[name]()) as platform:
            settings = choices(models_yaml, zoo) | {"API_KEYS": "key"}
            for name, value in (settings | OVERRIDES | platform.environment).items():
                environment.setenv(name, value)
            module = importlib.import_module("deploy.modal_app")
            for name in ("DiffusersBackend_A10G", "DiffusersBackend_L40S"):
                containers[name] = getattr(module, name)._get_user_cls()
            with module.app.run():
                yield platform, module
            modal.Client.from_env().close()  # the SDK keeps one for its process, and another platform needs another


@pytest.fixture(autouse=True)
def containers_environment(models_yaml: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a container, which starts with the first input."""
    for name, value in choices(models_yaml, zoo).items():
        monkeypatch.setenv(name, value)


def job(id_: str, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "input": {"prompt": PROMPT, "num_inference_steps": 2, "seed": 5, **fields}}


def test_the_classes_are_deployed_with_their_gpu_limits_volume_and_overrides(
    modal_platform: tuple[ModalPlatform, ModuleType],
) -> None:
    platform, _ = modal_platform
    small, large = (platform.records.functions[f"DiffusersBackend_{tier}"] for tier in ("A10G", "L40S"))
    assert [function.resources.gpu_config.gpu_type for function in (small, large)] == ["A10G", "L40S"]
    scaling = [function.autoscaler_settings for function in (small, large)]
    assert [(limits.max_containers, limits.scaledown_window) for limits in scaling] == [(3, 60), (1, 300)]
    assert [function.timeout_secs for function in (small, large)] == [1800, 900]
    for function in (small, large):
        mounts = {mount.mount_path: platform.records.volumes[mount.volume_id] for mount in function.volume_mounts}
        assert mounts == {"/root/.cache/huggingface": "diffusers-models"}
        assert function.checkpointing_enabled  # its containers start from a memory snapshot
        (secret,) = [platform.records.secrets[id_] for id_ in function.secret_ids]
        assert secret["VOLUME_DIR"] == "/root/.cache/huggingface"
        assert secret["DIFFUSERS_L40S_TIMEOUT"] == "900"
        assert "DIFFUSERS_A10G_MAX_CONTAINERS" not in secret  # that is Modal's to know
        assert "API_KEYS" not in secret


async def test_an_image_comes_back_from_a_class(modal_platform: tuple[ModalPlatform, ModuleType]) -> None:
    _, module = modal_platform
    answer = await module.DiffusersBackend_A10G().generate.remote.aio(job("one"))
    image = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert (image.size, answer["model"], answer["seed"]) == ((64, 64), "tiny", 5)
    refused = await module.DiffusersBackend_A10G().generate.remote.aio(job("two", model="org/unknown"))
    assert refused["code"] == "model_not_found"
    assert refused["details"]["supported_models"] == ["tiny", "other"]


async def test_two_models_in_turn_unload_each_other(modal_platform: tuple[ModalPlatform, ModuleType]) -> None:
    platform, module = modal_platform
    instance = module.DiffusersBackend_A10G()
    for turn, model in enumerate(["other", "tiny", "other"]):
        answer = await instance.generate.remote.aio(job(f"turn-{turn}", model=model))
        assert answer["timings"]["load_s"] > 0
        status = await instance.generate.remote.aio({"id": f"status-{turn}", "input": {"action": "status"}})
        assert status["resident_models"] == [model]
    assert platform.records.containers == {"DiffusersBackend_A10G": 1}  # all in one container


async def test_a_call_that_is_cancelled_stops_at_its_next_step(
    modal_platform: tuple[ModalPlatform, ModuleType],
) -> None:
    _, module = modal_platform
    instance = module.DiffusersBackend_A10G()
    async with modal.Queue.ephemeral() as updates:
        call = await instance.generate.spawn.aio(job("long", num_inference_steps=100), updates)
        first = await updates.get.aio(partition="long", timeout=60)
        assert first["progress"]["phase"] in ("load", "inference")
        await call.cancel.aio()
        with pytest.raises(modal.exception.RemoteError):
            await call.get.aio(timeout=60)
        # The one device is free again.
        assert (await instance.generate.remote.aio(job("after")))["seed"] == 5
        told = await updates.get_many.aio(200, partition="long", block=False)
    assert len(told) < 60


@pytest.fixture
def gateway(modal_platform: tuple[ModalPlatform, ModuleType]) -> Iterator[TestClient]:
    """A client of the gateway that was deployed."""
    _, module = modal_platform
    with pytest.warns(UserWarning, match="mounted Volume"):  # which Modal has, and this process has not
        app = module.gateway.local()
    with TestClient(app) as client:
        yield client


def test_an_image_comes_back_through_the_gateway(
    modal_platform: tuple[ModalPlatform, ModuleType], gateway: TestClient
) -> None:
    platform, _ = modal_platform
    before = len(platform.records.calls)
    answer = gateway.post("/diffusers/generate", json={"model_id": "tiny", "inputs": PROMPT, "parameters": {"seed": 7}})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    run = gateway.post("/v2/any/runsync", json={"input": {"prompt": PROMPT, "model": "other", "seed": 3}}).json()
    chosen = run["output"]["placement"]["replica"]  # either: the first may still be as good as busy
    calls = platform.records.calls[before:]
    assert [call.method for call in calls] == ["generate"] * 2
    assert calls[0].function == "DiffusersBackend_A10G"
    assert calls[1].function == f"DiffusersBackend_{chosen}"
    assert [call.arguments[0][0]["input"]["model"] for call in calls] == ["tiny", "other"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model_id": "org/unknown", "inputs": PROMPT}, 400),
        ({"model_id": "tiny", "inputs": PROMPT, "parameters": {"width": 77}}, 400),
    ],
)
def test_what_is_refused_calls_no_gpu(
    modal_platform: tuple[ModalPlatform, ModuleType], gateway: TestClient, body: dict[str, Any], status: int
) -> None:
    platform, _ = modal_platform
    before = len(platform.records.calls)
    answer = gateway.post("/diffusers/generate", json=body)
    assert answer.status_code == status
    if body["model_id"] == "org/unknown":
        assert answer.json()["details"]["supported_models"] == ["tiny", "other"]
    listed = gateway.get("/diffusers/models").json()["models"]
    assert {model["model_id"]: model["tier"] for model in listed} == {"tiny": "A10G", "other": "A10G"}
    assert len(platform.records.calls) == before


def test_progress_comes_through_the_gateway_and_a_cancel_reaches_the_container(
    modal_platform: tuple[ModalPlatform, ModuleType], gateway: TestClient
) -> None:
    platform, _ = modal_platform
    body = {"input": {"prompt": PROMPT, "model": "tiny", "num_inference_steps": 100, "previews": True}}
    id_ = gateway.post("/v2/any/run", json=body).json()["id"]
    with gateway.stream("GET", f"/events/{id_}") as events:
        seen = []
        for line in events.iter_lines():
            seen.append(line)
            if "preview" in line:
                break
    assert any('"phase":"inference"' in line.replace(" ", "") for line in seen)
    gateway.post(f"/v2/any/cancel/{id_}")
    for _ in range(200):
        if platform.records.cancelled:
            break
        time.sleep(0.05)
    assert platform.records.cancelled[-1].arguments[0][0]["input"]["num_inference_steps"] == 100
    assert gateway.get(f"/v2/any/status/{id_}").json()["status"] == "CANCELLED"


@pytest.mark.slow
def test_the_modal_program_deploys_the_file(tmp_path: Path) -> None:
    with ModalPlatform() as platform:
        command = [sys.executable, "-m", "modal", "deploy", str(PROJECT / "deploy" / "modal_app.py")]
        environment = {**os.environ, **platform.environment}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=170)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(platform.records.published) == 1
        assert {"DiffusersBackend_A10G", "DiffusersBackend_L40S"} <= platform.records.functions.keys()
