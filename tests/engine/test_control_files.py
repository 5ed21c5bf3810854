"""Control files in real sizes, by their headers: each becomes the control of its base, tensor for tensor."""

import copy
import json

import accelerate
import diffusers
import pytest
import torch
from safetensors.torch import load_file

from tests.catalog.corpus import NAMES, stored
from tests.controls import control_lora
from tests.engine.test_lora_headers import FAMILIES, model
from tests.zoo.families.stable_diffusion import sd1
from worker.catalog.detector import detect_header
from worker.catalog.detectors.controlnets import unfolded_bytes
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.engine.adapters.control_files import build_control
from worker.engine.adapters.control_loras import placed, unfolded
from worker.service.local.completing import CONFIGS

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# With another structure than their base, or one that shapes do not tell: these come as repositories with a config.json.
_NEED_CONFIG = {"controlnet-sdxl-small", "controlnet-sparse"}
_TOLD_BY_VALUES = "control_noise_refiner.0.before_proj.weight"  # which version of Z-Image's it is
_PARTS_OF_A_HEADER = {"controlnet-sd1", "t2i-adapter-sd1-original"}
FILES = [
    name
    for name in NAMES
    if name.startswith(("controlnet-", "t2i-adapter-"))
    and name not in _NEED_CONFIG | _PARTS_OF_A_HEADER
    and not name.endswith("-xlabs")
]


def weights(name):
    found = {
        key: torch.empty(shape, dtype=_DTYPES[dtype], device="meta")
        for key, (dtype, shape) in stored(name).tensors.items()
    }
    if _TOLD_BY_VALUES in found:
        found[_TOLD_BY_VALUES] = torch.ones(found[_TOLD_BY_VALUES].shape)
    return found


def base_of(architecture):
    kind, config = FAMILIES.get(architecture, ("SanaTransformer2DModel", {}))
    if kind == "unet":
        return json.loads((CONFIGS / str(config) / "unet" / "config.json").read_text())
    if architecture == "sana":
        with torch.device("meta"):
            return dict(diffusers.SanaTransformer2DModel().config)
    return dict(model(architecture).components["transformer"].config)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", FILES)
def test_a_single_file_is_put_together_from_its_base(name):
    found = detect_header(stored(name))
    cls = getattr(diffusers, found.component_class)
    net, named = build_control(cls, weights(name), base_of(found.architecture), name)
    assert named.keys() == net.state_dict().keys()


def test_a_file_of_another_structure_is_refused_with_what_differs():
    with pytest.raises(IncompatibleAdapter, match=r"tensors of small are not those of a ControlNetModel") as failure:
        build_control(diffusers.ControlNetModel, weights("controlnet-sdxl-small"), base_of("sdxl"), "small")
    assert failure.value.field == "controlnets"
    with pytest.raises(UnsupportedModel, match=r"diffusers repository"):
        build_control(diffusers.ControlNetXSAdapter, {}, base_of("sdxl"), "xs")


@pytest.mark.parametrize(
    ("name", "places", "refiner"),
    [
        ("controlnet-z-image", range(0, 30, 5), None),
        ("controlnet-z-image-2.1", range(0, 30, 2), "control_noise_refiner"),
        ("controlnet-z-image-2.1-lite", range(0, 30, 10), "control_noise_refiner"),
    ],
)
def test_the_layers_of_z_images_controls_lie_evenly_beside_its_own(name, places, refiner):
    net, _ = build_control(diffusers.ZImageControlNetModel, weights(name), base_of("z-image"), name)
    assert net.control_layers_places == [*places]
    assert net.add_control_noise_refiner == refiner


def control_of(name, architecture):
    """The ControlNet that control LoRA `name` is to become, without memory."""
    whole = weights(f"controlnet-{architecture}-diffusers")
    return build_control(diffusers.ControlNetModel, whole, base_of(architecture), name)[0]


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_a_control_lora_in_real_size_has_a_place_for_each_of_its_tensors(architecture):
    name = f"control-lora-{architecture}"
    control = control_of(name, architecture)
    held = placed(weights(name), control, name)
    changed = {f"{key.rpartition('.')[0]}.weight" if key.endswith((".up", ".down")) else key for key in held}
    assert changed == control.state_dict().keys()
    # Beside its base it takes what a whole ControlNet does.
    assert unfolded_bytes(stored(name)) == 2 * sum(tensor.numel() for tensor in control.state_dict().values())


def test_a_control_lora_of_another_structure_is_refused_with_what_differs():
    with pytest.raises(
        IncompatibleAdapter, match=r"tensors of small, a control LoRA, do not fit this model"
    ) as failure:
        placed(weights("control-lora-sdxl"), control_of("small", "sd1"), "small")
    assert failure.value.field == "controlnets"


def test_a_control_lora_needs_the_weights_of_its_base():
    config = base_of("sd1")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    with pytest.raises(UnsupportedModel, match=r"this model's are quantized or not in memory") as failure:
        unfolded(weights("control-lora-sd1"), control_of("edges", "sd1"), unet, "edges", torch.float32)
    assert failure.value.field == "controlnets"


def test_a_control_lora_finds_the_weights_of_its_base_where_offloading_keeps_them():
    unet = sd1()["unet"]
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    lacking = {name: tensor for name, tensor in control.state_dict().items() if name.startswith("controlnet_")}
    plain = unfolded(lacking, control, unet, "edges", torch.float32)
    assert all(torch.equal(tensor, control.state_dict()[name]) for name, tensor in plain.items())
    offloaded = unfolded(lacking, control, accelerate.cpu_offload(unet, "cpu"), "edges", torch.float32)
    assert unet.conv_in.weight.is_meta
    assert all(torch.equal(tensor, plain[name]) for name, tensor in offloaded.items())
    assert not any(tensor.is_meta for tensor in offloaded.values())


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_diffusers_own_reader_makes_the_same_of_it(tmp_path):
    """Of one that leaves the biases as they are: diffusers 0.42.1 loses those that stand beside a change."""
    torch.manual_seed(0)
    size = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 16}
    unet = diffusers.UNet2DConditionModel(**size, attention_head_dim=8).eval()
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    read = copy.deepcopy(control)
    with torch.no_grad():
        for name, tensor in control.named_parameters():
            if tensor.ndim > 1 or name.startswith("controlnet_"):
                tensor.add_(torch.randn_like(tensor) * 0.05)
    control.save_pretrained(tmp_path / "control")
    unet.save_pretrained(tmp_path / "model" / "unet")
    file = control_lora(tmp_path / "control", tmp_path / "model", tmp_path / "edges.safetensors")
    made = unfolded(load_file(file), control, unet, "edges", torch.float32)
    assert all(torch.allclose(tensor, made[name], atol=1e-5) for name, tensor in control.state_dict().items())
    read.load_lora_adapter(file, prefix=None)
    seen = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 7, 16), torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        ours, theirs = control(*seen, return_dict=False)[1], read(*seen, return_dict=False)[1]
    assert ours.abs().max() > 0.1
    assert torch.allclose(ours, theirs, atol=1e-4)
