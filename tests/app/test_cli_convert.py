"""The command that converts: the model in the box, there and back, each time tried by an image."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.app import adapters
from tests.app.commands import failed, invoke, said
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("DEVICE", "cpu")


def test_a_place_that_is_none_is_said_at_once(tmp_path):
    assert "There is no folder" in failed(invoke("convert", "demo", tmp_path / "none/x", "--to", "diffusers"))
    assert invoke("convert", "demo", tmp_path / "x", "--to", "onnx").exit_code == 2


@pytest.mark.slow
def test_pickles_are_not_read_wherever_they_are_named(tmp_path):
    """As a model, a VAE and a LoRA: nothing of them runs, and nothing is written."""
    ran = tmp_path / "ran"
    for name in ("model.ckpt", "vae.pt", "lora.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(_Runs(ran)))
    target = tmp_path / "x.safetensors"
    convert = ("convert", "demo", target, "--to", "single-file")
    for line in (
        ("convert", tmp_path / "model.ckpt", target, "--to", "single-file"),
        (*convert, "--vae", tmp_path / "vae.pt"),
        (*convert, "--lora", tmp_path / "lora.bin"),
        ("lora", "convert", tmp_path / "lora.bin", target, "--model", "demo", "--to", "comfy"),
        ("lora", "extract", tmp_path / "model.ckpt", target, "--model", "demo"),
    ):
        assert "pickle" in failed(invoke(*line)), line
    assert not ran.exists()
    assert not target.exists()


class _Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_the_model_in_the_box_becomes_one_file_and_a_folder_again(tmp_path, monkeypatch):
    file, folder = tmp_path / "demo.safetensors", tmp_path / "demo"
    told = json.loads(said(invoke("convert", "demo", file, "--to", "single-file", "--dtype", "fp16", "--json")))
    assert (told["same_image"], told["rounding"], told["bytes"]) == (True, 0, file.stat().st_size)
    assert told["entry"]["architecture"] == "sd1"
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"one": told["entry"]}}))  # as the command says it
    monkeypatch.setenv("MODELS_YAML", str(tmp_path / "models.yaml"))
    monkeypatch.setenv("DEFAULT_MODEL", "one")
    monkeypatch.setenv("ALLOWED_MODEL_DIRS", f"{tmp_path},{PROJECT / 'models'}")
    text = said(invoke("convert", "one", folder, "--to", "diffusers", "--dtype", "fp32", "--no-image"))
    assert "0.0e+00 of their largest" in text
    assert {path.name for path in Path(folder).iterdir()} >= {"model_index.json", "unet", "vae", "text_encoder"}
    assert "is there already" in failed(invoke("convert", "one", folder, "--to", "diffusers", "--no-image"))


@pytest.fixture
def style(tmp_path):
    """A LoRA of the model in the box, in kohya's spelling."""
    return adapters.demo_lora(tmp_path / "style.safetensors")


@pytest.mark.slow
def test_a_lora_and_a_vae_in_the_model_draw_what_both_beside_it_draw(tmp_path, style):
    """In fp32 to the pixel; in bf16 as near as a model without them comes to its own."""
    vae = shutil.copytree(PROJECT / "models/demo/vae", tmp_path / "vae")
    (weights,) = vae.glob("*.safetensors")
    save_file({name: tensor * 1.05 for name, tensor in load_file(weights).items()}, weights)
    options = ("--vae", vae, "--lora", f"{style}:0.7", "--to", "single-file", "--json")
    exact = json.loads(said(invoke("convert", "demo", tmp_path / "a.safetensors", *options, "--dtype", "fp32")))
    assert exact["same_image"]
    rounded = json.loads(said(invoke("convert", "demo", tmp_path / "b.safetensors", *options, "--dtype", "bf16")))
    plain = ("convert", "demo", tmp_path / "c.safetensors", "--to", "single-file", "--json", "--dtype", "bf16")
    assert rounded["psnr_db"] > json.loads(said(invoke(*plain)))["psnr_db"] - 6
    baked, own = load_file(tmp_path / "a.safetensors"), load_file(weights)
    decoder = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(baked[decoder], own["decoder.conv_in.weight"].float())


@pytest.mark.slow
def test_the_model_in_the_box_becomes_gguf_and_draws_nearly_the_same(tmp_path):
    near = {}
    for dtype in ("q8_0", "q4_0"):
        file = tmp_path / f"{dtype}.gguf"
        told = json.loads(said(invoke("convert", "demo", file, "--to", "gguf", "--dtype", dtype, "--json")))
        assert told["bytes"] == file.stat().st_size
        assert (told["entry"]["source"], told["entry"]["base"]) == (f"file:{file}", f"file:{PROJECT / 'models/demo'}")
        near[dtype] = told["psnr_db"]
    assert near["q8_0"] > near["q4_0"] > 10
    assert near["q8_0"] > 25
