"""Tiny hypernetworks in A1111's layout, as the pickle that it saves and as the same in safetensors."""

import json
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
_TOLD = ("activation_func", "activate_output", "is_layer_norm")
CROSS, SELF = 32, 64  # widths of the tiny UNet: text, and its second level


def network(width: int, seed: int, *, norm: bool = False, dropout: bool = False) -> Tensors:
    """One network's tensors as A1111 numbers them: linear, activation, norm, dropout, linear, activation, norm."""
    generator = torch.Generator().manual_seed(seed)
    place = 0
    found: Tensors = {}
    for index, (rows, columns) in enumerate(((2 * width, width), (width, 2 * width))):
        found[f"linear.{place}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        found[f"linear.{place}.bias"] = torch.randn(rows, generator=generator) * 0.1
        place += 2  # the activation
        if norm:
            found[f"linear.{place}.weight"] = 1 + torch.randn(rows, generator=generator) * 0.1
            found[f"linear.{place}.bias"] = torch.randn(rows, generator=generator) * 0.1
            place += 1
        if dropout and index == 0:
            place += 1
    return found


def pickled(widths: tuple[int, ...] = (CROSS, SELF), **said: Any) -> dict[Any, Any]:
    """A file as A1111 saves it: a pair of networks for each width, and what the tensors do not tell."""
    options = {"norm": bool(said.get("is_layer_norm")), "dropout": bool(said.get("use_dropout"))}
    pairs = {width: (network(width, width, **options), network(width, width + 1, **options)) for width in widths}
    usual = {
        "step": 900,
        "name": "style",
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "sd_checkpoint": None,
    }
    return pairs | usual | said


def flat(saved: dict[Any, Any]) -> Tensors:
    """The same as safetensors."""
    return {
        f"{width}.{at}.{name}": tensor
        for width, pair in saved.items()
        if isinstance(width, int)
        for at, layers in enumerate(pair)
        for name, tensor in layers.items()
    }


def told(saved: dict[Any, Any]) -> dict[str, str]:
    """What a converted pickle's header says."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in saved.items() if key in _TOLD}
