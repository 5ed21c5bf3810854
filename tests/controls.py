"""Tiny models and the controls that fit them, apart from one another: made of the recipes of tests.zoo."""

import inspect
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.single_files import ldm_unet_name, single_file, weights
from tests.zoo import RECIPES
from tests.zoo.plain import draw, load, save
from tests.zoo.recipe import Recipe
from worker.catalog.pipelines.controlled import CONTROLLED, Controlled

RECIPE = {recipe.pipeline: recipe for recipe in RECIPES}
ROW = {row.pipeline: row for row in CONTROLLED}


@dataclass(frozen=True)
class Pair:
    """A model without control, its control, and both as the one repository that plain diffusers loads."""

    row: Controlled
    model: Path
    control: Path
    both: Path

    @property
    def recipe(self) -> Recipe:
        return RECIPE[self.row.pipeline]

    def request(self, **control: Any) -> dict[str, Any]:
        """What a caller sends for what the recipe asks of plain diffusers."""
        fields = self.recipe.fields()
        sent = {name: value for name, value in fields.items() if not name.startswith("control_")}
        if "control_mask" in fields:
            sent |= {"image": fields["control_image"], "mask_image": fields["control_mask"]}
        spec = {"model": f"file:{self.control}"}
        if "control_image" in fields:
            spec["image"] = fields["control_image"]
        if "control_mode" in fields:
            spec["mode"] = "canny"
        return {**sent, "model": f"file:{self.model}", "seed": 0, "controlnets": [spec | control]}

    def drawn_by_diffusers(self, parameters: dict[str, Any], **more: Any) -> np.ndarray:
        """What diffusers' own pipeline draws with the parameters of an answer, from the same seeds."""
        call = {**(self.recipe.call or self.recipe.request), **parameters, **more}
        pipe = load(self.recipe, self.both)
        taken = inspect.signature(pipe.__call__).parameters
        torch.manual_seed(0)  # some encode the control image with torch's own generator
        drawn = draw(replace(self.recipe, call={name: call[name] for name in call if name in taken}), pipe)
        return drawn if drawn.dtype == np.uint8 else (drawn * 255).round().astype(np.uint8)


def apart(pipeline: str, root: Path) -> Pair:
    """Save the recipe of `pipeline`, then its control and all the rest beside it."""
    row, both = ROW[pipeline], save(RECIPE[pipeline], root / pipeline)
    model, control = root / f"{pipeline}-model", root / f"{pipeline}-control"
    slot = "adapter" if row.component == "T2IAdapter" else "controlnet"
    shutil.copytree(both, model)
    shutil.move(model / slot, control)
    index = json.loads((model / "model_index.json").read_text())
    del index[slot]
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": row.plain}))
    return Pair(row, model, control, both)


def original(control: Path, path: Path) -> Path:
    """Write a saved ControlNet of Stable Diffusion as one file with the names of its authors."""
    layers = json.loads((control / "config.json").read_text())["layers_per_block"]
    found = weights(control)
    named = {f"control_model.{_original(name, layers, found)}": tensor for name, tensor in found.items()}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, path)
    return path


def difference(control: Path, model: Path, path: Path) -> Path:
    """Write a saved ControlNet under its authors' names, less the weights that `model`'s UNet has too, and marked."""
    layers = json.loads((control / "config.json").read_text())["layers_per_block"]
    found, base = weights(control), weights(model / "unet")
    tensors = {"difference": torch.zeros(0)}
    for name, tensor in found.items():
        change = tensor - base[name] if name in base else tensor
        tensors[f"control_model.{_original(name, layers, found)}"] = change.contiguous()
    save_file(tensors, path)
    return path


def whole_checkpoint(control: Path, model: Path, path: Path) -> Path:
    """Write a checkpoint as the first ControlNets were published: the whole model with its control inside."""
    tensors = load_file(single_file(model, path)) | load_file(original(control, path.with_suffix(".control")))
    save_file(tensors, path)
    return path


def control_lora(control: Path, model: Path, path: Path, *, original_names: bool = True) -> Path:
    """Write a saved ControlNet as what it has beyond `model`'s UNet: changed weights in factors, all else whole.

    The factors have full rank, so that it is the same ControlNet.
    """
    layers = json.loads((control / "config.json").read_text())["layers_per_block"]
    found, base = weights(control), weights(model / "unet")
    tensors = {"lora_controlnet": torch.zeros(0)}
    for name, tensor in found.items():
        place = _original(name, layers, found) if original_names else name
        if name not in base or tensor.ndim == 1:
            tensors[place] = tensor
            continue
        change = (tensor - base[name][:, : tensor.shape[1]]).flatten(1).double()  # an inpainting UNet has more inputs
        left, sizes, right = torch.linalg.svd(change, full_matrices=False)
        stem, kernel = place.removesuffix(".weight"), [1] * (tensor.ndim - 2)
        tensors[f"{stem}.up"] = (left * sizes).float().reshape(len(tensor), -1, *kernel).contiguous()
        tensors[f"{stem}.down"] = right.float().reshape(-1, *tensor.shape[1:]).contiguous()
    save_file(tensors, path)
    return path


def _original(name: str, layers: int, found: dict[str, torch.Tensor]) -> str:
    first, _, rest = name.partition(".")
    if first == "controlnet_down_blocks":
        at, leaf = rest.split(".")
        return f"zero_convs.{at}.0.{leaf}"
    if first == "controlnet_mid_block":
        return f"middle_block_out.0.{rest}"
    if first == "controlnet_cond_embedding":
        place, leaf = rest.rsplit(".", 1)
        at = {"conv_in": 0, "conv_out": 14}.get(place)
        return f"input_hint_block.{2 * (int(place.split('.')[1]) + 1) if at is None else at}.{leaf}"
    return ldm_unet_name(name, layers, found)
