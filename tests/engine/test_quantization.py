"""Quantized files: fp8 with scales is read exactly, GGUF stays packed, the rest is refused by name."""

import json
import types
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.quantizers.bfl import utils as bfl
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter, dequantize_gguf_tensor

from tests import builders, single_files
from tests import original_layouts as originals
from tests.engine.test_single_files import draw, load
from tests.images import assert_differs
from worker.catalog.capabilities import check_loadable
from worker.catalog.detectors.storage import UNREAD_BLOCKS, quantization_of, unpacked
from worker.catalog.formats.gguf import GGUF_TYPES
from worker.catalog.formats.headers import read_header
from worker.core.errors import CorruptFile, UnsupportedModel, WorkerError
from worker.core.model import Detection, Kind, ModelFiles
from worker.engine.adapters.adapter_cache import denoiser_of
from worker.engine.components import Component
from worker.engine.quantization import dequantize
from worker.engine.single_file import load_part
from worker.service.local.weights import count_parameters, measure


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return builders.tiny_flux(tmp_path_factory.mktemp("quantized") / "flux")


@pytest.fixture(scope="module")
def sources(flux, tmp_path_factory):
    return {"flux": flux, "sd1": builders.tiny_sd1(tmp_path_factory.mktemp("quantized") / "sd1")}


def comfy(tensors):
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.quick_rows(1)
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


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", ["flux", "sd3", "sd1"])
def test_gguf_draws_nearly_what_its_source_draws_and_stays_packed(tmp_path, family):
    folder = getattr(builders, f"tiny_{family}")(tmp_path / family)
    path = single_files.gguf(single_files.denoiser(folder), tmp_path / "model.gguf", family)
    pipe = load(family, path, base=folder)
    denoiser = pipe.unet if family == "sd1" else pipe.transformer
    packed = [name for name, tensor in denoiser.named_parameters() if isinstance(tensor, GGUFParameter)]
    assert len(packed) > 5
    source = load(family, single_files.save(single_files.denoiser(folder), tmp_path / "x.safetensors"), base=folder)
    difference = np.abs(draw(pipe) - draw(source))
    assert 0 < difference.max() < 0.1
    assert difference.mean() < 0.01


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("family", "kind", "folded"),
    [
        ("sd1", "Q8_0", True),
        ("sd1", "Q4_0", True),
        ("sd1", "BF16", False),
        ("flux", "F16", True),
        ("flux", "Q8_0", True),
    ],
)
def test_a_gguf_whose_shapes_are_noted_or_whose_convolutions_are_packed_is_read_as_its_source(
    sources, tmp_path, family, kind, folded
):
    folder = sources[family]
    path = single_files.gguf(single_files.denoiser(folder), tmp_path / "model.gguf", family, kind, folded=folded)
    denoiser = denoiser_of(load(family, path, base=folder))
    wanted = single_files.weights(folder / ("unet" if family == "sd1" else "transformer"))
    tolerance = {"Q8_0": 0.01, "Q4_0": 0.15, "F16": 0.001, "BF16": 0.01}[kind]
    for name, tensor in denoiser.named_parameters():
        error = (dequantize_gguf_tensor(tensor) - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-6)
        assert error < tolerance, name
    packed = [tensor for tensor in denoiser.parameters() if isinstance(tensor, GGUFParameter)]
    plain = [tensor for tensor in denoiser.parameters() if not isinstance(tensor, GGUFParameter)]
    assert len(packed) > 5 if kind.startswith("Q") else packed == []
    # The plan counts what is held: folded convolutions are plain, whatever they are stored in.
    counted = measure(ModelFiles(path, path.stat().st_size), ())
    held = {"model": sum(tensor.numel() for tensor in plain)}, {"model": sum(tensor.nbytes for tensor in packed)}
    assert counted == (held[0], held[1] if packed else {})


def test_a_packed_denoiser_from_elsewhere_counts_as_it_is_held_and_a_packed_encoder_as_it_is_unpacked(flux, tmp_path):
    file = single_files.gguf(single_files.denoiser(flux), tmp_path / "model.gguf", "flux")
    _, packed = measure(ModelFiles(file, 1), ())
    parts = ModelFiles(flux, 1, parts={"transformer": file, "text_encoder": file})
    numbers, stored = measure(parts, None)
    assert stored == {"transformer": packed["model"]}
    assert numbers["text_encoder"] == count_parameters(file)["model"] > numbers["transformer"]


def test_every_kind_of_blocks_that_the_catalog_lets_pass_can_be_unpacked():
    unpacked = {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}
    plain = {"F16", "F32", "F64", "I8", "I16", "I32", "I64"}
    assert set(GGUF_TYPES.values()) - UNREAD_BLOCKS == unpacked | plain


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
    with pytest.raises(WorkerError) as failure:
        load("flux", path, base=flux)
    assert failure.value.code in {"corrupt_file", "load_failed"}


class TestBlackForestLabs:
    """FLUX.2 as its authors quantize it, in their names: the fused and the turned layers too."""

    CONFIG = types.MappingProxyType({
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 32, "in_channels": 16, "axes_dims_rope": [4, 4, 4, 4],
    })  # fmt: skip

    @pytest.fixture
    def model(self, tmp_path):
        torch.manual_seed(0)
        model = diffusers.Flux2Transformer2DModel(**self.CONFIG)
        model.save_config(tmp_path / "base/transformer")
        return model

    @staticmethod
    def quantized(model, kind, left_out=()):
        """The published file: matrices of blocks packed, with their scales beside them."""
        file = {}
        for name, tensor in originals.flux2(dict(model.state_dict())).items():
            stem = name.removesuffix(".weight")
            if not name.startswith(("double_blocks", "single_blocks", "final_layer")) or tensor.ndim != 2:
                file[name] = tensor
            elif kind == "fp8r":
                file[name], file[f"{stem}.weight_scale"] = bfl.quantize_fp8r(tensor)
            else:
                file[name], file[f"{stem}.weight_scale"], file[f"{stem}.weight_scale_2"] = bfl.quantize_nvfp4(tensor)
                file[f"{stem}.input_scale"] = torch.tensor(0.01)
        return {name: tensor for name, tensor in file.items() if not name.endswith(tuple(left_out) or ("\0",))}

    @staticmethod
    def read(path, base):
        index = {"transformer": Component("transformer", "diffusers", "Flux2Transformer2DModel")}
        return load_part(index, "transformer", path, base, torch.float32)

    @pytest.mark.parametrize("kind", ["nvfp4", "fp8r"])
    def test_its_files_load_and_compute_with_what_their_scales_say(self, model, tmp_path, kind):
        file = self.quantized(model, kind)
        loaded = self.read(single_files.save(file, tmp_path / "file.safetensors"), tmp_path / "base")
        packed = [type(module).__name__ for module in loaded.modules() if type(module).__name__ == "BFLNVFP4Linear"]
        assert bool(packed) is (kind == "nvfp4")
        plain = {name: tensor for name, tensor in file.items() if "_scale" not in name}
        for name in (name for name in file if name.endswith(".weight_scale")):
            weight = name.replace(".weight_scale", ".weight")
            scales = [file[name], *([file[f"{name}_2"]] if kind == "nvfp4" else [])]
            plain[weight] = getattr(bfl, f"dequantize_{kind}")(file[weight], *scales)
        want = self.read(single_files.save(plain, tmp_path / "plain.safetensors"), tmp_path / "base")
        inputs = {
            "hidden_states": torch.randn(1, 4, 16), "encoder_hidden_states": torch.randn(1, 3, 32),
            "timestep": torch.tensor([0.5]), "guidance": torch.tensor([4.0]), "img_ids": torch.zeros(1, 4, 4),
            "txt_ids": torch.zeros(1, 3, 4),
        }  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).sample, want(**inputs).sample, atol=1e-4, rtol=1e-4)

    def test_the_header_says_what_it_is_with_the_sizes_of_the_model(self, model, tmp_path):
        header = read_header(single_files.save(self.quantized(model, "nvfp4"), tmp_path / "file.safetensors"))
        assert quantization_of(header)[0] == "nvfp4"
        want = originals.flux2({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        held = unpacked(header).tensors
        assert {name: held[name][1] for name in want} == want

    @pytest.mark.parametrize(
        ("name", "shape", "dtype", "kind"),
        [
            ("comfy_quant", (24,), torch.uint8, "nvfp4-comfy"),
            ("weight_scale", (192, 4), torch.float8_e4m3fn, "nvfp4"),
        ],
    )
    def test_what_no_layer_here_reads_is_refused_from_the_header(self, model, tmp_path, name, shape, dtype, kind):
        file = self.quantized(model, "nvfp4") | {f"double_blocks.0.img_attn.qkv.{name}": torch.zeros(shape).to(dtype)}
        header = read_header(single_files.save(file, tmp_path / "file.safetensors"))
        assert quantization_of(header)[0] == kind
        blocks = {key: one for key, one in header.tensors.items() if not key.endswith(("_scale_2", "comfy_quant"))}
        found = Detection(
            Kind.DENOISER, "safetensors", quantization=quantization_of(replace(header, tensors=blocks))[0]
        )
        assert found.quantization == "mxfp8"
        with pytest.raises(UnsupportedModel, match="scaled in blocks"):
            check_loadable("x", found)

    def test_missing_scales_are_damage_and_another_order_of_scales_is_refused(self, model, tmp_path):
        path = single_files.save(self.quantized(model, "nvfp4", [".input_scale"]), tmp_path / "file.safetensors")
        with pytest.raises(CorruptFile, match="lack scales of some layers"):
            self.read(path, tmp_path / "base")
        marked = self.quantized(model, "nvfp4") | {"double_blocks.0.img_mlp.0.comfy_quant": torch.zeros(2).byte()}
        with pytest.raises(UnsupportedModel, match=r"nvfp4 weights are ComfyUI's"):
            self.read(single_files.save(marked, tmp_path / "comfy.safetensors"), tmp_path / "base")
