"""Folders whose files the libraries would not read as they are: each is loaded as if it were plain, and left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker.core.device import LoadPlan
from worker.engine.loader import load_pipeline
from worker.engine.mirror import readable


def marked(folder: Path) -> None:
    for file in folder.rglob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))


def wide(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_bytes(file.read_text().encode("utf-16"))


def short(folder: Path) -> None:
    for part, ending in (("unet", ".sft"), ("vae", ".SAFETENSORS")):
        file = folder / part / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_suffix(ending))


def from_a_mac(folder: Path) -> None:
    for file in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7" + bytes(100))


def with_an_index(folder: Path) -> None:
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("change", [marked, wide, short, from_a_mac, with_an_index])
def test_a_folder_is_loaded_as_if_it_were_plain(zoo: Path, tmp_path: Path, change: Callable[[Path], None]):
    folder = shutil.copytree(zoo / "models/sd1", tmp_path / "sd1")
    change(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    plain, pipe = (
        load_pipeline(LoadPlan(root, "StableDiffusionPipeline", "float32", "cpu", "none", 0, 0))
        for root in (zoo / "models/sd1", folder)
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for part in ("unet", "vae", "text_encoder"):
        weights, expected = getattr(pipe, part).state_dict(), getattr(plain, part).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert dict(pipe.scheduler.config) == dict(plain.scheduler.config)
    assert pipe.tokenizer("a red apple").input_ids == plain.tokenizer("a red apple").input_ids


def test_plain_files_are_read_where_they_lie(zoo: Path, tmp_path: Path):
    plan = LoadPlan(zoo / "models/sd1", "StableDiffusionPipeline", "float32", "cpu", "none", 0, 0)
    with readable(plan) as same:
        assert same == plan
    upper = tmp_path / "Model.GGUF"
    upper.write_bytes(b"GGUF")
    with readable(LoadPlan(upper, "FluxPipeline", "float32", "cpu", "none", 0, 0)) as changed:
        assert (changed.root.name, changed.root.read_bytes()) == ("Model.gguf", b"GGUF")
