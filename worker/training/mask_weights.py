"""A mask in the form of latents as a denoiser reads them: the pipeline packs it, in the place of what is encoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from worker.core.errors import UnsupportedModel
from worker.training.rehearsal import Habits, rehearse

_SLACK = 0.05  # by which half precision may leave 0 to 1


@dataclass(slots=True)
class MaskWeights:
    """Makes weights of masks for one pipeline.

    Its VAE is let return the mask in the place of latents, and all white, and all black: whatever the pipeline adds to
    latents, scales and packs them by is told by the last two, and taken off again. One that `edits` needs a source.
    """

    pipe: Any
    habits: Habits
    edits: bool = False
    ends: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def weights(self, mask: Image.Image) -> torch.Tensor:
        """Return weights of 0 to 1, of the shape of a call's `clean`, of a mask in grey that has its image's size."""
        plane = torch.from_numpy(np.asarray(mask, np.float32) / 255)
        if mask.size not in self.ends:
            self.ends[mask.size] = self._seen(torch.zeros_like(plane)), self._seen(torch.ones_like(plane))
        (black, white), seen = self.ends[mask.size], self._seen(plane)
        span = white - black
        if not bool((span.abs() > 1e-6).all()):
            raise self._unknown()
        weights = (seen - black) / span
        if float(weights.min()) < -_SLACK or float(weights.max()) > 1 + _SLACK:
            raise self._unknown()
        return weights.clamp(0, 1)

    def _seen(self, plane: torch.Tensor) -> torch.Tensor:
        if getattr(self.pipe, "vae", None) is None:
            raise self._unknown()
        blank = Image.new("RGB", (plane.shape[1], plane.shape[0]))
        with _encoding(self.pipe.vae, plane):
            return rehearse(self.pipe, self.habits, blank, "", 0, blank if self.edits else None).clean.float().cpu()

    def _unknown(self) -> UnsupportedModel:
        return UnsupportedModel(
            f"{type(self.pipe).__name__} reads latents in a way of its own; train it without masks (mask=off).",
            field="mask",
        )


@contextmanager
def _encoding(vae: Any, plane: torch.Tensor) -> Iterator[None]:
    """Let a VAE encode whatever it gets as `plane`, at the size of its latents."""
    whole = vae.encode

    def encode(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        latents = output[0] if isinstance(output, tuple) else getattr(output, "latent_dist", None)
        if latents is None:
            name = "latent" if hasattr(output, "latent") else "latents"
            setattr(output, name, _like(getattr(output, name), plane))
        elif isinstance(latents, torch.Tensor):
            return (_like(latents, plane), *output[1:])
        else:
            latents.mean, latents.std = _like(latents.mean, plane), torch.zeros_like(latents.std)
        return output

    vae.encode = encode
    try:
        yield
    finally:
        del vae.encode


def _like(latents: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    """Return `plane` (height, width) with the size, channels and dtype of latents (…, height, width)."""
    small = torch.nn.functional.interpolate(plane[None, None], tuple(latents.shape[-2:]), mode="area")[0, 0]
    return small.to(latents).expand(latents.shape).clone()
