"""Small images of a job in progress: latents through one linear map to colours, fitted once to each VAE.

A latent pixel's colour is very nearly a linear function of its channels, so an image costs one small matrix product
instead of a decode. The map is fitted by least squares to the VAE's own decode of smooth random latents (white noise
teaches it less). Published tables of such factors exist for a few families; a fitted map serves every VAE, with 4
channels or 128, and one that a user brings. Of the demo model's finished images it explains 87 % and more.
"""

import inspect
import logging
import time
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from worker.core.image import Raster
from worker.core.job import Job

_LOG = logging.getLogger(__name__)

EVERY_S = 0.2
MAX_SIDE = 256
_SAMPLE_SIDE = 32  # of the latents that are fitted to: 1,024 equations for at most some 130 unknowns
_PACKED = ("latents", "height", "width", "vae_scale_factor")

# By VAE, for as long as that is in memory; None for one that could not be fitted.
_maps: WeakKeyDictionary[torch.nn.Module, torch.Tensor | None] = WeakKeyDictionary()


class Previewer:
    """A source of images of a job's latents, one in `EVERY_S` seconds at most.

    Made before the call: fitting needs the VAE.
    """

    def __init__(self, pipe: Any, job: Job) -> None:
        self._pipe = pipe
        self._job = job
        self._map = _map_of(pipe)
        self._last = 0.0

    def image(self, latents: Any) -> Raster | None:
        """Return the first image in `latents` after a step; None when it is too early or they are not understood."""
        now, colours_of = time.monotonic(), self._map
        if colours_of is None or not isinstance(latents, torch.Tensor) or now - self._last < EVERY_S:
            return None
        try:
            plane = self._plane(latents.detach(), colours_of.shape[0] - 1)
        except Exception as error:  # an image on the way is never worth the job
            _LOG.info("no previews with %s: %s", type(self._pipe).__name__, type(error).__name__)
            self._map = plane = None
        if plane is None:
            return None
        self._last = now
        plane = plane.float()
        # Some schedulers' latents are many times too large until the noise is gone.
        plane = plane / (plane.std() / 2).clamp(min=1.0)
        colours = torch.einsum("chw,cr->hwr", plane, colours_of[:-1].to(plane.device)) + colours_of[-1].to(plane.device)
        pixels = ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().contiguous()
        height, width, _ = pixels.shape
        return Raster("RGB", width, height, pixels.numpy().tobytes())

    def _plane(self, latents: torch.Tensor, channels: int) -> torch.Tensor | None:
        """Return the latents of the first image, or of a video's middle frame, CxHxW."""
        if latents.ndim == 3:
            latents = self._unpacked(latents, channels)
        if latents.ndim == 5:
            if latents.shape[1] != channels:
                latents = latents.transpose(1, 2)
            latents = latents[:, :, latents.shape[2] // 2]
        if latents.ndim != 4 or latents.shape[1] != channels:
            return None
        shrink = max(1, -(-max(latents.shape[2:]) // MAX_SIDE))
        return functional.avg_pool2d(latents[:1].float(), shrink)[0] if shrink > 1 else latents[0]

    def _unpacked(self, latents: torch.Tensor, channels: int) -> torch.Tensor:
        """Return latents that the pipeline keeps as a sequence, packed or not, as a plane where it says how."""
        unpack = getattr(self._pipe, "_unpack_latents", None)
        if unpack is None or tuple(inspect.signature(unpack).parameters) != _PACKED:
            return latents
        scale = self._pipe.vae_scale_factor
        usual = getattr(self._pipe, "default_sample_size", 0) * scale
        height, width = (int(str(self._job.params.get(name) or usual)) for name in ("height", "width"))
        if latents.shape[2] == channels:
            return latents.transpose(1, 2).unflatten(2, (height // scale, width // scale))
        return unpack(latents, height, width, scale)


def _map_of(pipe: Any) -> torch.Tensor | None:
    """Return the map, (channels + 1) x 3, the last row a constant; None without a VAE that can be fitted."""
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, torch.nn.Module):
        return None
    if vae not in _maps:
        try:
            _maps[vae] = _fit(vae)
        except Exception as error:  # an image on the way is never worth the job
            _LOG.info("no previews with %s: %s", type(vae).__name__, type(error).__name__)
            _maps[vae] = None
    return _maps[vae]


def _fit(vae: Any) -> torch.Tensor | None:
    config = vae.config
    channels = int(getattr(config, "latent_channels", None) or getattr(config, "z_dim", None) or 0)
    if channels < 1:
        return None
    latents = _sample(channels)
    colours = _decoded(vae, _denormalised(config, latents))
    colours = functional.interpolate(colours, size=latents.shape[2:], mode="area")
    if not torch.isfinite(colours).all():
        return None
    inputs = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)[0].flatten(1).T
    return torch.linalg.lstsq(inputs.double(), colours[0].flatten(1).T.double()).solution.float()


def _sample(channels: int) -> torch.Tensor:
    """Return 1xCxHxW latents of about unit variance, smooth like those of images and always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    side = _SAMPLE_SIDE
    coarse = torch.randn(1, channels, side // 4, side // 4, generator=generator)
    fine = torch.randn(1, channels, side, side, generator=generator)
    smooth = functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return smooth / smooth.std() + 0.2 * fine


def _denormalised(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the pipeline's latents as its VAE takes them."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        column = (1, -1, 1, 1)
        latents = latents * torch.tensor(std).view(column)
    latents = latents / (getattr(config, "scaling_factor", None) or 1.0)
    if mean is not None and std is not None:
        latents = latents + torch.tensor(mean).view(column)
    return latents + (getattr(config, "shift_factor", None) or 0.0)


def _decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the decoded image, 1x3xHxW in -1..1, in 32 bits on the CPU."""
    dtype = vae.dtype
    # Such a VAE overflows in half precision; the way to 32 bits and back changes no weight.
    upcast = dtype is torch.float16 and getattr(vae.config, "force_upcast", False) and not hasattr(vae, "_hf_hook")
    if upcast:
        vae.to(torch.float32)
    try:
        weight = next(weight for weight in vae.decoder.parameters() if weight.ndim >= 4)
        device = getattr(getattr(vae, "_hf_hook", None), "execution_device", None) or vae.device
        inputs = latents.to(device, vae.dtype)
        with torch.no_grad():
            colours = vae.decode(inputs.unsqueeze(2) if weight.ndim == 5 else inputs, return_dict=False)[0]
        return (colours[:, :, 0] if colours.ndim == 5 else colours)[:, :3].float().cpu()
    finally:
        if upcast:
            vae.to(dtype)
