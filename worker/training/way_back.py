"""The way back: from what a VAE encodes to the latents that a denoiser reads, for classes that start from text alone.

Such a pipeline packs noise, and unpacks and scales what its denoiser made of it before its VAE decodes it. On that way
each value goes to one place, times a factor, plus an offset: z = D P x + b, P a permutation and D a diagonal. So one
run with zeros for x shows b, and its gradients show the rest: D P' is the transposed Jacobian, which takes ones to the
factors, and z - b to D D x.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

Lead = Callable[[torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
"""Put latents, or zeros with gradients, in the place of what the denoiser made; return them and what the VAE gets."""

_OFF = {torch.float32: 1e-3}
_OFF_HALF = 5e-2


def latents_of(image: Image.Image, vae: Any, lead: Lead) -> torch.Tensor:
    """Return an image's latents (1, …) in the form that the denoiser reads. Raises ValueError where no way is known."""
    zeros, arrived = lead(None)
    target = _encoded(vae, image, arrived.ndim).to(arrived)
    if target.shape != arrived.shape:
        raise ValueError("the VAE decodes another shape than it encodes")
    (factors,) = torch.autograd.grad(arrived, zeros, torch.ones_like(arrived), retain_graph=True)
    (scaled,) = torch.autograd.grad(arrived, zeros, target - arrived.detach())
    latents = scaled / factors.square()
    _, there = lead(latents)
    if not torch.allclose(there.float(), target.float(), rtol=0, atol=_OFF.get(target.dtype, _OFF_HALF)):
        raise ValueError("values are mixed on their way to the VAE")
    return latents.detach()


def _encoded(vae: Any, image: Image.Image, dimensions: int) -> torch.Tensor:
    """Return what a VAE makes of an image, as the mean of its distribution; one that reads videos is given a frame."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    pixels = pixels if dimensions == 4 else pixels.unsqueeze(2)
    with torch.no_grad():
        output = vae.encode(pixels.to(vae.device, vae.dtype))
    distribution = getattr(output, "latent_dist", None)
    latents: torch.Tensor = output.latent if distribution is None else distribution.mode()
    return latents
