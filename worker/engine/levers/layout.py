"""Weights and matrix products in the form that a GPU's units take: TF32, channels last, one product for Q, K and V."""

from collections.abc import Iterable

import torch
from torch import nn

from worker.engine.levers.row import Ground, Undo


def tf32(ground: Ground) -> Undo:
    """Let products of float32 use TF32: of a half precision model these are few, its VAE's the largest."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    return lambda: torch.set_float32_matmul_precision(before)


def has_convolutions(ground: Ground) -> bool:
    """True if a denoiser is made of convolutions in the plane."""
    return any(isinstance(module, nn.Conv2d) for part in ground.denoisers for module in _many(part))


def denoiser_channels_last(ground: Ground) -> Undo:
    """Lay the weights of the denoiser's convolutions out with their channels last."""
    return _channels_last(ground.denoisers)


def vae_channels_last(ground: Ground) -> Undo:
    """Lay the VAE's out so, for one call: other pipelines may share it."""
    vae = getattr(ground.pipe, "vae", None)
    return _channels_last([vae] if isinstance(vae, nn.Module) else [])


def fuses(ground: Ground) -> bool:
    """True if the denoiser has the means to compute Q, K and V by one product, and plain weights."""
    return bool(ground.denoisers) and all(hasattr(part, "fuse_qkv_projections") for part in ground.denoisers)


def fused(ground: Ground) -> Undo:
    """Compute Q, K and V by one product each. Takes memory for one more copy of these weights."""
    parts = ground.denoisers
    before = [{name for name, _ in part.named_modules()} for part in parts]
    marks = [_marks(part) for part in parts]

    def off() -> None:
        for part, names, marked in zip(parts, before, marks, strict=True):
            part.unfuse_qkv_projections()
            _remove_others(part, names)
            for module, value in marked:
                module.fused_projections = value

    try:
        for part in parts:
            part.fuse_qkv_projections()
    except BaseException:
        off()
        raise
    return off


def _marks(part: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Return the modules that note whether they are fused, each with its note."""
    return [
        (module, module.fused_projections)
        for module in part.modules()
        if isinstance(getattr(module, "fused_projections", None), bool)
    ]


def _remove_others(part: nn.Module, names: set[str]) -> None:
    """Remove the modules that came in: a UNet keeps them, and their memory, when it does not use them any more."""
    for name, _ in [*part.named_modules()]:
        owner, _, last = name.rpartition(".")
        if name not in names and hasattr(part.get_submodule(owner), last):
            delattr(part.get_submodule(owner), last)


def _channels_last(parts: Iterable[nn.Module]) -> Undo:
    weights = [
        module.weight
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    strides = [weight.stride() for weight in weights]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def off() -> None:
        for weight, stride in zip(weights, strides, strict=True):
            own = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=weight.device)
            weight.data = own.copy_(weight.data)

    return off


def _many(part: nn.Module) -> list[nn.Module]:
    """Return a denoiser's modules where convolutions are more than its way in and out."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in part.modules())
    return [*part.modules()] if convolutions > 4 else []
