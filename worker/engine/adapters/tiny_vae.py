"""A tiny autoencoder's weight file: both halves, or the decoder alone, which leaves encoding to the model's own VAE."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

# The first layers of a decoder in diffusers' names and in its authors': in a file of both halves, or by themselves.
_FIRST_LAYERS = frozenset({"decoder.layers.0.weight", "decoder.1.weight", "taesd_decoder.1.weight"})
_ALONE = frozenset({"1.weight", "3.conv.0.weight"})
_LAYER = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d+)\.(.+)")


def is_tiny(path: Path) -> bool:
    """True if the file has the decoder of a tiny autoencoder. It has no config that would say so."""
    with safe_open(path, framework="pt") as file:
        names = {*file.keys()}
    return not _FIRST_LAYERS.isdisjoint(names) or names >= _ALONE


def load_tiny(path: Path, own: Any) -> Any:
    """Return the tiny autoencoder of a file; all published ones differ in channels only.

    Without an encoder it encodes as `own` does, the model's own VAE. Raises RuntimeError where tensors are missing.
    """
    vae = diffusers.AutoencoderTiny(latent_channels=own.config.latent_channels)
    weights = load_file(path)
    if weights.keys() >= _ALONE:
        weights = {f"decoder.{name}": tensor for name, tensor in weights.items()}
    weights = {_name(name): tensor for name, tensor in weights.items()}
    wanted = vae.state_dict().keys()
    weights = {name: tensor for name, tensor in weights.items() if name in wanted or "." in name}
    if any(name.startswith("encoder.") for name in weights):
        vae.load_state_dict(weights)
        return vae
    vae.decoder.load_state_dict({name.removeprefix("decoder."): tensor for name, tensor in weights.items()})
    vae.encoder = None
    vae.encode = partial(encode_with, own, float(vae.config.scaling_factor))
    return vae


def _name(name: str) -> str:
    """Return a tensor's name in diffusers: in its authors' decoder the clamp counts as the first layer."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return name
    half, position, rest = layer.groups()
    return f"{half}.layers.{int(position) - (half == 'decoder')}.{rest}"


def encode_with(own: Any, scale: float, image: Tensor, return_dict: bool = True) -> Any:
    """Encode images (N, 3, H, W) with the model's own VAE, into latents at the scale that the pipeline expects."""
    half = own.dtype == torch.float16 and own.config.get("force_upcast", False)
    if half:  # it would overflow, and the pipeline asks the other VAE about it
        own.to(torch.float32)
    try:
        encoded = own.encode(image.to(own.dtype))
    finally:
        if half:
            own.to(torch.float16)
    if not hasattr(encoded, "latent_dist"):
        return encoded if return_dict else (encoded.latents,)
    factor, shift = float(own.config.scaling_factor) / scale, float(own.config.get("shift_factor") or 0)
    mean, spread = encoded.latent_dist.mean, encoded.latent_dist.logvar
    moments = torch.cat([(mean - shift) * factor, spread + 2 * math.log(factor)], dim=1).to(image.dtype)
    latents = DiagonalGaussianDistribution(moments)
    return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)
