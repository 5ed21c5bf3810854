"""Control LoRAs and difference ControlNets.

Control LoRAs are ControlNets published as their difference from the base's UNet, in Stability AI's format.

A ControlNet starts as a copy of its base's down blocks. A control LoRA holds the difference since: factors of low rank
for the weights that changed (`up` times `down`), and whole tensors where the base has none, biases and norms. So it is
a ControlNet only together with a base, and is made into one for each base that it is used with.

The base's part is its own weights. ComfyUI takes those that a LoRA of the same workflow has changed already, so that
there the LoRA acts on the control too. Here a control depends on its file and its base alone, whatever else a job asks
for, and can be kept for the next job.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.single_file import LORA_CONTROLNET
from worker.engine.adapters.names import aliases
from worker.engine.adapters.targets import own_parameter

_FIELD = "controlnets"
MARKER = LORA_CONTROLNET
"""The empty tensor by which a file says that it is one."""


def added(named: Mapping[str, Tensor], unet: nn.Module, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a control's tensors, whose differences from `unet` are `named`, in `dtype` on the CPU.

    Raises UnsupportedModel where the UNet's own weights cannot be read, IncompatibleAdapter where sizes differ.
    """
    modules, state = dict(unet.named_modules()), {}
    for key, tensor in named.items():
        if key.rpartition(".")[0] in modules:
            tensor = tensor.float() + _of_unet(modules, key, tuple(tensor.shape), name).to("cpu", torch.float32)
        state[key] = tensor.to(dtype)
    return state


def unfolded(
    weights: Mapping[str, Tensor], control: nn.Module, unet: nn.Module, name: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return every tensor of `control`, which has no memory yet: the weights of `unet` with the changes of file `name`.

    In `dtype`, on the CPU, and shared with nobody. Computed in float32, where the UNet is. Raises IncompatibleAdapter
    where the file changes a tensor that the UNet has not, or lacks one that neither has; UnsupportedModel where the
    UNet's own weights cannot be read.
    """
    tensors = placed(weights, control, name)
    modules, state = dict(unet.named_modules()), {}
    for key, shape in _shapes(control).items():
        value = tensors.get(key)
        if value is None:
            value = _of_unet(modules, key, shape, name)
        stem = key.removesuffix(".weight")
        if f"{stem}.up" in tensors:
            up, down = (tensors[f"{stem}.{side}"].to(value.device, torch.float32).flatten(1) for side in ("up", "down"))
            value = value.float() + (up @ down).reshape(shape)
        state[key] = value.to("cpu", dtype, copy=True)
    return state


def placed(weights: Mapping[str, Tensor], control: nn.Module, name: str) -> dict[str, Tensor]:
    """Return `weights` by the names of `control`; a file has these names or the original ones.

    Raises IncompatibleAdapter unless each is one of the control's tensors, or half of a change of one.
    """
    paths = [path for path, _ in control.named_modules()]
    path_of = {alias.name: path for path, alias in aliases(paths)}
    tensors = {}
    for full, tensor in weights.items():
        stem, _, leaf = full.rpartition(".")
        if full != MARKER:
            tensors[f"{path_of.get(stem, stem)}.{leaf}"] = tensor
    shapes = _shapes(control)
    misfits = [key for key, tensor in tensors.items() if not _fits(key, tensor, tensors, shapes)]
    if misfits:
        raise IncompatibleAdapter(
            f"{_FIELD}: {len(misfits)} of {len(tensors)} tensors of {name}, a control LoRA, do not fit this model "
            f"({misfits[0][:80]}, say); use it with the model that it was made for.",
            field=_FIELD,
            details={"samples": misfits[:3]},
        )
    return tensors


def _fits(key: str, tensor: Tensor, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    stem, _, leaf = key.rpartition(".")
    if leaf not in ("up", "down"):
        return shapes.get(key) == tuple(tensor.shape)
    up, down, shape = tensors.get(f"{stem}.up"), tensors.get(f"{stem}.down"), shapes.get(f"{stem}.weight", ())
    if up is None or down is None or min(up.ndim, down.ndim, len(shape)) < 2:
        return False
    up, down = up.flatten(1), down.flatten(1)  # a convolution's kernel belongs to `down`
    return up.shape[1] == down.shape[0] and (up.shape[0], down.shape[1]) == (shape[0], prod(shape[1:]))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def _of_unet(modules: Mapping[str, nn.Module], key: str, shape: tuple[int, ...], name: str) -> Tensor:
    """Return the base's own tensor for a part of the control."""
    path, _, leaf = key.rpartition(".")
    try:
        value = own_parameter(modules[path], leaf) if path in modules else None
    except UnsupportedModel:
        raise UnsupportedModel(
            f"{_FIELD}: {name} holds differences from the model's own weights, and this model's are "
            "quantized or not in memory; use the unquantized model, or a whole ControlNet.",
            field=_FIELD,
        ) from None
    if value is not None and key == "conv_in.weight":
        value = value[:, : shape[1]]  # an inpainting UNet sees mask and image too, after the latents
    if value is None or tuple(value.shape) != shape:
        raise IncompatibleAdapter(
            f"{_FIELD}: {name} holds differences without {key[:80]}, which this model cannot give; use it with "
            "the model that it was made for.",
            field=_FIELD,
        )
    return value
