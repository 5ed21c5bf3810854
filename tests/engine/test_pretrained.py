"""Repositories whose tensors are not those that their configs say: each is refused by name, or understood."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, MultiControlNetModel, StableDiffusionControlNetPipeline
from safetensors.torch import load_file, save_file

from tests import builders
from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile
from worker.engine.loader import load_pipeline
from worker.engine.pretrained import load_pretrained
from worker.store.selection import pipeline_files

Weights = dict[str, torch.Tensor]
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
# Models of both libraries, and of each kind: denoisers, VAE, CLIP with and without a projection, T5.
PARTS = (
    ("sd1", "unet", "mid_block.resnets.0.conv1.weight"),
    ("sd1", "vae", "decoder.conv_out.bias"),
    ("sd1", "text_encoder", "encoder.layers.0.self_attn.q_proj.weight"),
    ("sd3", "transformer", "transformer_blocks.0.attn.to_q.weight"),
    ("sd3", "text_encoder_2", "text_projection.weight"),
    ("sd3", "text_encoder_3", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("flux", "text_encoder_2", "encoder.final_layer_norm.weight"),
)


@pytest.fixture
def repository(zoo: Path, tmp_path: Path) -> Callable[..., tuple[LoadPlan, Path]]:
    """A repository with one part's weights changed: the plan that loads it, and the part's file."""

    def build(family: str, part: str, change: Callable[[Weights], Weights]) -> tuple[LoadPlan, Path]:
        folder = shutil.copytree(zoo / "models" / family, tmp_path / family)
        file = next((folder / part).glob("*.safetensors"))
        edit(file, change)
        return LoadPlan(folder, PIPELINES[family], "float32", "cpu", "none", 0, 0), file

    return build


def edit(file: Path, change: Callable[[Weights], Weights]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(weights), file, {"format": "pt"})


def named(weights: Weights, tensor: str) -> str:
    """The file's own name of a tensor: CLIP's are published with `text_model.` before them."""
    return next(name for name in weights if name.endswith(tensor))


@pytest.mark.parametrize(("family", "part", "tensor"), PARTS)
def test_a_missing_tensor_is_named_with_its_part(repository, family, part, tensor):
    plan, _ = repository(family, part, lambda weights: without(weights, named(weights, tensor)))
    with pytest.raises(CorruptFile, match=rf"The {part} of the model lacks 1 tensor .*\({tensor}, say\)") as error:
        load_pipeline(plan)
    assert error.value.details == {"missing": [tensor]}


def without(weights: Weights, name: str) -> Weights:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(("family", "part", "tensor"), PARTS)
def test_a_tensor_that_no_module_takes_is_named_with_its_part(repository, family, part, tensor):
    def unmerged(weights: Weights) -> Weights:
        return weights | {named(weights, tensor).rpartition(".")[0] + ".lora_A.default.weight": torch.ones(2, 2)}

    plan, _ = repository(family, part, unmerged)
    with pytest.raises(CorruptFile, match=rf"The {part} of the model has 1 tensor .*lora_A\.default\.weight, say"):
        load_pipeline(plan)


@pytest.mark.parametrize(("family", "part", "tensor"), PARTS)
def test_a_tensor_of_another_shape_is_named_with_its_part(repository, family, part, tensor):
    plan, _ = repository(family, part, lambda weights: weights | {named(weights, tensor): torch.ones(5)})
    with pytest.raises(CorruptFile, match=rf"The {part} of the model has 1 tensor of another shape .*{tensor} is 5, "):
        load_pipeline(plan)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"),
        lambda name: name.replace(".0.", ".0._orig_mod."),
    ],
    ids=["data-parallel", "compiled", "peft", "peft-layers", "compiled-blocks"],
)
@pytest.mark.parametrize(("family", "part"), [("sd1", "unet"), ("sd1", "text_encoder"), ("sd3", "text_encoder_3")])
def test_names_of_a_wrapped_model_are_understood(repository, family, part, wrapped):
    plan, file = repository(family, part, lambda weights: weights)
    plain = {name: tensor.clone() for name, tensor in getattr(load_pipeline(plan), part).state_dict().items()}
    edit(file, lambda weights: {wrapped(name): tensor for name, tensor in weights.items()})
    loaded = getattr(load_pipeline(plan), part)
    assert not loaded.training
    assert loaded.state_dict().keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.state_dict().items())


def test_a_wrapped_model_keeps_in_fp32_what_its_class_asks_for(repository, monkeypatch):
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(UNet2DConditionModel, "_keep_in_fp32_modules", ["conv_out"])
    _, file = repository("sd1", "unet", lambda weights: {f"module.{name}": item for name, item in weights.items()})
    unet = load_pretrained(UNet2DConditionModel, file.parent, "It", dtype=torch.bfloat16)
    assert (unet.conv_out.weight.dtype, unet.conv_in.weight.dtype) == (torch.float32, torch.bfloat16)


def test_towers_of_a_larger_model_and_numbers_that_classes_make_themselves_are_left_out(repository):
    others = {"vision_model.embeddings.class_embedding": torch.ones(4), "logit_scale": torch.ones(())}
    numbers = {"text_model.embeddings.position_ids": torch.arange(77).reshape(1, 77)}
    plan, _ = repository("sd1", "text_encoder", lambda weights: weights | others | numbers)
    assert isinstance(load_pipeline(plan), DiffusionPipeline)


def test_a_control_without_one_of_its_tensors_is_refused(tmp_path):
    ControlNetModel.from_unet(builders.unet()).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    edit(file, lambda weights: without(weights, "controlnet_mid_block.weight"))
    with pytest.raises(CorruptFile, match=r"controlnets: mine lacks 1 tensor .*controlnet_mid_block\.weight") as error:
        load_pretrained(
            ControlNetModel, tmp_path, "controlnets: mine", field="controlnets", dtype=torch.float32, variant=None
        )
    assert error.value.field == "controlnets"


def test_a_part_without_any_weights_is_named(repository):
    plan, file = repository("sd1", "vae", lambda weights: weights)
    file.unlink()
    with pytest.raises(CorruptFile, match=r"The vae of the model lacks its weights \(vae/\*\.safetensors\)"):
        load_pipeline(plan)


def test_a_repository_with_several_controlnets_is_fetched_and_loaded_with_all_of_them(zoo, tmp_path):
    base = DiffusionPipeline.from_pretrained(zoo / "models/sd1", safety_checker=None)
    nets = [ControlNetModel.from_unet(base.unet) for _ in range(2)]
    torch.nn.init.ones_(nets[1].controlnet_mid_block.bias)
    parts = {name: part for name, part in base.components.items() if name != "controlnet"}
    pipe = StableDiffusionControlNetPipeline(
        **parts, controlnet=MultiControlNetModel(nets), requires_safety_checker=False
    )
    pipe.save_pretrained(tmp_path / "model")
    files = [
        path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*") if path.is_file()
    ]
    chosen = pipeline_files(json.loads((tmp_path / "model/model_index.json").read_bytes()), files, None).names
    assert {name for name in files if name.startswith("controlnet")} <= set(chosen)

    plan = LoadPlan(tmp_path / "model", "StableDiffusionControlNetPipeline", "float32", "cpu", "none", 0, 0)
    loaded = load_pipeline(plan).controlnet.nets
    assert [net.controlnet_mid_block.bias.unique().tolist() for net in loaded] == [[0.0], [1.0]]

    edit(next((tmp_path / "model/controlnet_1").glob("*.safetensors")), lambda weights: dict(list(weights.items())[1:]))
    with pytest.raises(CorruptFile, match="controlnet of the model lacks 1 tensor"):
        load_pipeline(plan)
