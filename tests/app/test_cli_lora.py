"""The commands for LoRA files: the LoRA of the model in the box, each time tried by an image."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.app import adapters
from tests.app.commands import failed, invoke, said
from worker.core.lora_spellings import SPELLINGS


@pytest.fixture(autouse=True)
def on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("DEVICE", "cpu")


@pytest.fixture
def style(tmp_path):
    """A LoRA of the model in the box, in kohya's spelling."""
    return adapters.demo_lora(tmp_path / "style.safetensors")


def test_a_mistake_in_the_line_is_said_at_once(tmp_path, style):
    convert = ("lora", "convert", style)
    assert "There is no folder" in failed(invoke(*convert, tmp_path / "none/x", "--model", "demo", "--to", "kohya"))
    assert invoke(*convert, tmp_path / "x", "--model", "demo", "--to", "gguf").exit_code == 2
    assert "OUTPUT" not in failed(invoke(*convert, style, "--model", "demo", "--to", "kohya"))
    assert "is there already" in failed(invoke(*convert, style, "--model", "demo", "--to", "kohya"))
    assert "must end with .safetensors" in failed(invoke(*convert, tmp_path / "x", "--model", "demo", "--to", "comfy"))


def test_a_rank_that_is_none_is_refused_before_a_worker_starts(tmp_path):
    line = ("lora", "extract", "demo", tmp_path / "x.safetensors", "--model", "demo", "--rank")
    assert "--rank is 0; give a number from 1 to 1024" in failed(invoke(*line, "0"))
    assert "--rank is 1025" in failed(invoke(*line, "1025"))
    assert "There is no folder" in failed(invoke("lora", "extract", "demo", tmp_path / "no/x", "--model", "demo"))
    (tmp_path / "x.safetensors").touch()
    assert "is there already" in failed(invoke(*line, "4"))


@pytest.mark.slow
def test_what_was_baked_in_is_taken_out_and_draws_nearly_the_same(tmp_path, style):
    tuned, target = tmp_path / "tuned", tmp_path / "x.safetensors"
    said(invoke("convert", "demo", tuned, "--to", "diffusers", "--dtype", "fp32", "--lora", style, "--no-image"))
    line = ("lora", "extract", tuned, target, "--model", "demo")
    told = json.loads(said(invoke(*line, "--rank", "4", "--to", "kohya", "--json")))
    assert told["kept"] > 0.999
    assert told["left_out"] == 0
    assert told["layers"] == len(load_file(style)) / 3
    assert told["same_image"] or told["psnr_db"] > told["psnr_db_without"] + 15
    assert load_file(target).keys() == load_file(style).keys()
    target.unlink()
    text = said(invoke(*line, "--rank", "1"))
    assert "of the difference, and 0.0% is in tensors that no LoRA changes" in text
    assert "with it an image within" in text


@pytest.mark.slow
def test_a_lora_is_written_in_every_spelling_and_draws_the_same(tmp_path, style):
    for to in SPELLINGS:
        target = tmp_path / (to if to == "peft" else f"{to}.safetensors")
        told = json.loads(said(invoke("lora", "convert", style, target, "--model", "demo", "--to", to, "--json")))
        assert (told["exact"], told["same_image"], told["path"]) == (True, True, str(target))
    text = said(invoke("lora", "convert", tmp_path / "peft/adapter_model.safetensors", tmp_path / "back.safetensors",
                       "--model", "demo", "--to", "kohya"))  # fmt: skip
    assert "came back to the bit" in text
    assert "the same image" in text
    first, back = load_file(style), load_file(tmp_path / "back.safetensors")
    assert first.keys() == back.keys()
    assert all(torch.equal(first[name], back[name]) for name in first)
