"""Quantized files: fp8 with scales is read exactly, GGUF stays packed, the rest is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import builders, single_files
from tests.engine.test_single_files import draw, load
from tests.images import assert_differs
from worker.core.errors import CorruptFile, UnsupportedModel
from worker.engine.quantization import dequantize


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return builders.tiny_flux(tmp_path_factory.mktemp("quantized") / "flux")


def comfy(tensors):
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_scaled_fp8_equals_what_its_scales_say(flux, tmp_path, scale, per_channel):
    packed, plain = single_files.scaled_fp8(single_files.denoiser(flux), scale=scale, per_channel=per_channel)
    packed["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    packed["img_in.scale_input"] = torch.tensor(1.0)
    from_fp8 = load("flux", single_files.save(comfy(packed), tmp_path / "fp8.safetensors"), base=flux)
    from_plain = load("flux", single_files.save(comfy(plain), tmp_path / "plain.safetensors"), base=flux)
    assert np.array_equal(draw(from_fp8), draw(from_plain))
    # Without its scales the same file draws something else, or nothing at all: the test would see it.
    bare = {name: tensor for name, tensor in packed.items() if not name.endswith(scale)}
    without = load("flux", single_files.save(comfy(bare), tmp_path / "bare.safetensors"), base=flux)
    assert_differs(np.nan_to_num(draw(without)), draw(from_plain))


def test_plain_fp8_becomes_the_plans_dtype(flux, tmp_path):
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
        for name, tensor in single_files.denoiser(flux).items()
    }
    pipe = load("flux", single_files.save(tensors, tmp_path / "fp8.safetensors"), base=flux)
    assert {tensor.dtype for tensor in pipe.transformer.parameters()} == {torch.float32}
    assert np.isfinite(draw(pipe)).all()


def test_half_precision_is_what_every_part_gets(flux, tmp_path):
    from worker.core.device import LoadPlan
    from worker.engine.loader import load_pipeline

    path = single_files.single_file(flux, tmp_path / "f.safetensors")
    config = single_files.config_of(flux, tmp_path / "config")
    plan = LoadPlan(path, "FluxPipeline", "bfloat16", "cpu", "none", 0, 0, format="safetensors", config=config)
    pipe = load_pipeline(plan)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert {tensor.dtype for tensor in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["nvfp4", "mxfp8", "int8_tensorwise", None])
def test_another_comfy_format_is_refused_by_name(method):
    said = torch.tensor(list(json.dumps({"format": method}).encode()), dtype=torch.uint8)
    weights = {"x.weight": torch.zeros(4, 4, dtype=torch.uint8), "x.comfy_quant": said}
    with pytest.raises(UnsupportedModel, match=f"quantized as {method}"):
        dequantize(weights, torch.float32)


def test_scales_of_blocks_are_refused():
    weights = {"x.weight": torch.zeros(4, 64).to(torch.float8_e4m3fn), "x.weight_scale": torch.ones(4, 2)}
    with pytest.raises(UnsupportedModel, match="scaled in blocks"):
        dequantize(weights, torch.float32)


def test_a_scale_of_no_tensor_is_damage():
    with pytest.raises(CorruptFile, match=r"a scale for .x\.weight."):
        dequantize({"x.scale_weight": torch.ones(1)}, torch.float32)


@pytest.mark.parametrize("family", ["flux", "sd3", "sd1"])
def test_gguf_draws_nearly_what_its_source_draws_and_stays_packed(tmp_path, family):
    folder = getattr(builders, f"tiny_{family}")(tmp_path / family)
    path = single_files.gguf(single_files.denoiser(folder), tmp_path / "model.gguf", family)
    pipe = load(family, path, base=folder)
    from diffusers.quantizers.gguf.utils import GGUFParameter

    denoiser = pipe.unet if family == "sd1" else pipe.transformer
    packed = [name for name, tensor in denoiser.named_parameters() if isinstance(tensor, GGUFParameter)]
    assert len(packed) > 5
    source = load(family, single_files.save(single_files.denoiser(folder), tmp_path / "x.safetensors"), base=folder)
    difference = np.abs(draw(pipe) - draw(source))
    assert 0 < difference.max() < 0.1
    assert difference.mean() < 0.01


def test_a_lora_works_on_top_of_gguf(flux, tmp_path):
    path = single_files.gguf(single_files.denoiser(flux), tmp_path / "model.gguf", "flux")
    pipe = load("flux", path, base=flux)
    before = draw(pipe)
    lora = builders.lora_for(flux, tmp_path / "lora.safetensors")
    pipe.load_lora_weights(Path(lora).parent, weight_name=Path(lora).name)
    assert_differs(draw(pipe), before)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), before)


def test_a_damaged_gguf_is_said(flux, tmp_path):
    path = single_files.gguf(single_files.denoiser(flux), tmp_path / "model.gguf", "flux")
    path.write_bytes(path.read_bytes()[:2_000])
    from worker.core.errors import WorkerError

    with pytest.raises(WorkerError) as failure:
        load("flux", path, base=flux)
    assert failure.value.code in {"corrupt_file", "load_failed"}
