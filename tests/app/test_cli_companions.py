"""What goes beside a model, by the ids of models.yaml: locked and pulled, it serves a worker without a network."""

import json
import shutil

import pytest

from tests.app.commands import invoke, said, use_volume
from tests.asking import perform
from tests.companions import companions
from tests.fakes.hub import FakeHub
from tests.images import encoded, gradient
from worker.app.build import build_worker
from worker.app.settings import Settings

REGISTRY = {
    "org/model": {"defaults": {"num_inference_steps": 2}},
    "follow": {"source": "org/control"},
    "show": {"source": "org/prompts#models/ip-adapter_sd15.safetensors"},
    "word": {"source": "org/beside#word-sd1.safetensors"},
    "style": {"source": "org/beside#style.safetensors"},
    "look": {"source": "org/beside#lora.safetensors"},
    "larger": {"source": "org/beside#esrgan.safetensors"},
    "decoder": {"source": "org/vae"},
}
IMAGE = encoded(gradient(64, 64))
JOBS = {
    "follow": {"controlnets": [{"model": "follow", "image": IMAGE}]},
    "show": {"ip_adapters": [{"model": "show", "image": IMAGE}]},
    "word": {"embeddings": [{"model": "word", "token": "zzz"}]},
    "style": {"hypernetworks": ["style"]},
    "look": {"loras": ["look"]},
    "larger": {"upscale": "larger"},
    "decoder": {"vae": "decoder"},
}


@pytest.fixture(scope="module")
def served(zoo, tmp_path_factory):
    """The folders that the Hub serves, by repository."""
    root = tmp_path_factory.mktemp("served")
    made = companions(root / "companions", models=zoo / "models")
    (root / "prompts/models").mkdir(parents=True)
    shutil.copy(made / "ip-sd1.safetensors", root / "prompts/models/ip-adapter_sd15.safetensors")
    shutil.copytree(made / "image_encoder", root / "prompts/models/image_encoder")
    (root / "beside").mkdir()
    for name in ("word-sd1", "style", "esrgan"):
        shutil.copy(made / f"{name}.safetensors", root / "beside")
    shutil.copy(zoo / "models/lora.safetensors", root / "beside")
    return {
        "org/model": zoo / "models/sd1",
        "org/control": made / "control-sd1",
        "org/prompts": root / "prompts",
        "org/beside": root / "beside",
        "org/vae": made / "vae",
    }


@pytest.fixture
def hub(served):
    with FakeHub() as server:
        for name, folder in served.items():
            server.add_repo(name, folder)
        yield server


@pytest.fixture
def command(hub, tmp_path, monkeypatch):
    """Runs a command of the worker on an empty volume."""
    use_volume(monkeypatch, tmp_path, json.dumps({"models": REGISTRY}), hub.endpoint)

    return lambda *words: said(invoke(*words))


def alone(tmp_path):
    """A worker on that volume that may ask nobody."""
    settings = Settings(
        models_yaml=tmp_path / "models.yaml",
        models_lock=tmp_path / "models.lock",
        default_model="org/model",
        volume_dir=tmp_path / "volume",
        device="cpu",
        offline=True,
        warm_up=False,
    )
    return build_worker(settings)


@pytest.mark.slow
async def test_all_that_is_pulled_serves_without_a_network(command, hub, tmp_path):
    assert f"{len(REGISTRY) + 1} locked" in command("lock")  # an IP-Adapter has an image encoder
    shutil.rmtree(tmp_path / "volume", ignore_errors=True)
    for name in REGISTRY:
        assert f"{name}: " in command("cache", "pull", name)
    asked = len(hub.requests)
    worker = alone(tmp_path)
    for name, fields in {"plain": {}, **JOBS}.items():
        payload = {"prompt": "a zzz apple", "seed": 7, "width": 64, "height": 64, **fields}
        answer = await perform(worker, payload, name, lambda progress: None)
        assert answer["image"], name
    assert len(hub.requests) == asked
