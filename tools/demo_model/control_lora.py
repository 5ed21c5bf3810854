"""The layout of the edge ControlNet: a control LoRA, which holds only what it has beyond the UNet that it was made of.

As Stability AI publishes them: the names are those of the original latent-diffusion layout, a changed weight is the
UNet's own plus `up` times `down`, what the UNet lacks (the way in for the image, the ways out) is whole, and an empty
tensor says what the file is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.demo_model.assembly import original_unet_key

MARKER = "lora_controlnet"
_HINT, _WAYS_OUT, _LAST = "controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block."
_HALVES = {"lora_A.weight": "down", "lora_B.weight": "up"}


def original_control_key(key: str, layers: int) -> str:
    """Translate a diffusers ControlNet key to the original layout."""
    stem, _, leaf = key.rpartition(".")
    if key.startswith(_HINT):
        place = stem.removeprefix(_HINT)
        # Between the image's convolutions stand activations, which count too; the last is always the fourteenth.
        at = {"conv_in": 0, "conv_out": 14}.get(place)
        return f"input_hint_block.{2 * int(place.rpartition('.')[2]) + 2 if at is None else at}.{leaf}"
    if key.startswith(_WAYS_OUT):
        return f"zero_convs.{stem.removeprefix(_WAYS_OUT)}.0.{leaf}"
    if key.startswith(_LAST):
        return f"middle_block_out.0.{leaf}"
    return original_unet_key(key, layers, [])


def save_control_lora(control: ControlNetModel, path: Path) -> None:
    """Write what a ControlNet with one peft LoRA has beyond its UNet, in fp16."""
    layers = control.config["layers_per_block"]
    weights = {MARKER: torch.zeros(0)}
    for key, value in control.state_dict().items():
        if key.startswith((_HINT, _WAYS_OUT, _LAST)):
            weights[original_control_key(key, layers)] = value
    for key, value in get_peft_model_state_dict(control).items():
        module, half = key.rsplit(".lora_", 1)
        weights[original_control_key(f"{module}.{_HALVES['lora_' + half]}", layers)] = value
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.detach().half().contiguous() for key, value in weights.items()}, path)


def load_control_lora(path: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """Make the ControlNet of a control LoRA and of the UNet that it belongs to."""
    weights: dict[str, Tensor] = load_file(path)
    widths = tuple(len(weights[f"input_hint_block.{at}.weight"]) for at in (0, 4, 8))
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    filled = control.state_dict()
    for key, value in filled.items():
        name = original_control_key(key, control.config["layers_per_block"])
        stem = name.removesuffix(".weight")
        if name in weights:
            filled[key] = weights[name].to(value.dtype)
        elif f"{stem}.up" in weights:
            up, down = (weights[f"{stem}.{half}"].to(value.dtype).flatten(1) for half in ("up", "down"))
            filled[key] = value + (up @ down).reshape(value.shape)
    control.load_state_dict(filled)
    return control
