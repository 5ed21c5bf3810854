"""Pipelines that the engine's tests share, built once and left as they were by every test; and where files are kept."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import builders, tiny_tasks
from tests.companions import companions
from tests.engine.lora_bench import Bench
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings


@pytest.fixture(scope="session")
def benches(tmp_path_factory) -> Callable[[str], Bench]:
    """A bench for each family, made when it is first asked for."""
    found: dict[str, Bench] = {}

    def bench(family: str) -> Bench:
        if family not in found:
            found[family] = Bench(family, tmp_path_factory.mktemp("lora"))
        return found[family]

    return bench


@pytest.fixture(scope="session")
def task_models(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """models.yaml's entries of a tiny model for each task, by id."""
    models = tmp_path_factory.mktemp("tasks")
    sd1, sdxl, flux, lora = (zoo / "models" / name for name in ("sd1", "sdxl", "flux", "lora.safetensors"))
    folders = {
        "kontext": tiny_tasks.kontext(flux, models / "kontext"),
        "fill": tiny_tasks.fill(models / "fill", flux=flux),
        "control": tiny_tasks.controlnet(models / "control", sd1=sd1),
        "refiner": tiny_tasks.refiner(models / "refiner", sdxl=sdxl),
        "upscaler": tiny_tasks.upscaler(models / "upscaler", sd1=sd1),
        "video": tiny_tasks.cogvideox(models / "video"),
        "refilm": tiny_tasks.cogvideox(models / "refilm", from_video=1),
        "ddim": tiny_tasks.unconditional(models / "ddim"),
        "edit": zoo / "models/pix2pix",
        "sd1": sd1,
        "sdxl": sdxl,
        "sd3": zoo / "models/sd3",
        "flux": flux,
    }
    entries = {
        name: {"source": f"file:{folder}", "defaults": {"num_inference_steps": 2}} for name, folder in folders.items()
    }
    entries["flux"]["defaults"] |= {"width": 64, "height": 64}
    entries["fast"] = entries["sd1"] | {"lightning": {"lora": f"file:{lora}", "steps": 2}}
    entries["esrgan"] = {
        "source": f"file:{companions(zoo / 'models/companions', models=zoo / 'models')}/esrgan.safetensors"
    }
    return entries


@pytest.fixture(scope="session")
def task_worker(
    task_models: Mapping[str, dict[str, Any]], zoo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Worker]:
    """Makes workers that serve these models; settings by name."""
    root = tmp_path_factory.mktemp("shop")
    (root / "models.yaml").write_text(json.dumps({"models": task_models}))
    loras = zoo / "models"
    for family in ("sdxl", "flux"):
        builders.lora_for(loras / family, loras / f"lora-{family}.safetensors", seed=7)

    def build(**settings: Any) -> Worker:
        common = {"models_yaml": root / "models.yaml", "default_model": "sd1", "allowed_model_dirs": [root.parent]}
        return build_worker(Settings(**common, volume_dir=root / "volume", device="cpu", warm_up=False, **settings))

    return build


@pytest.fixture
def kept(settings: Settings) -> Callable[..., str]:
    """Keeps tensors, or whatever is pickled, in a file that callers may name, and says how."""
    folder = settings.volume / "kept"
    folder.mkdir(parents=True)

    def keep(name: str, tensors: Any, metadata: Mapping[str, str] | None = None) -> str:
        path = folder / name
        if path.suffix == ".safetensors":
            save_file(tensors, path, metadata)
        else:
            torch.save(tensors, path)
        return f"file:{path}"

    return keep
