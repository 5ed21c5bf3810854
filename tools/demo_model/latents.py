"""A pool of encoded training scenes that is renewed bit by bit while training draws from it."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.demo_model.autoencoder import to_tensor
from tools.demo_model.scenes import Gallery, Scene, random_scene
from tools.demo_model.things import THINGS


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: np.ndarray, device: str = "cpu") -> Tensor:
    """Encode uint8 images (count, 64, 64, 3) to unscaled latents (count, 4, 16, 16), float32."""
    with torch.autocast(device, torch.bfloat16):
        inputs = to_tensor(images).to(device, memory_format=torch.channels_last)
        return vae.encode(inputs).latent_dist.mean.float()


def latent_scale(vae: AutoencoderKL, gallery: Gallery) -> float:
    """Return the factor that gives the latents of training scenes a standard deviation of one."""
    rng = np.random.default_rng(12)
    images = np.stack([gallery.image(random_scene(k % len(THINGS), rng)) for k in range(256)])
    return float(1 / encoded(vae, images).std())


class LatentPool:
    """Scenes and their scaled latents; every thing has the same share."""

    def __init__(
        self,
        vae: AutoencoderKL,
        scale: float,
        gallery: Gallery,
        rng: np.random.Generator,
        count: int,
        device: str = "cpu",
    ) -> None:
        self._vae, self._scale, self._gallery, self._rng, self._device = vae, scale, gallery, rng, device
        self._latents = torch.zeros(count, 4, 16, 16, dtype=torch.float16, device=device)
        self._scenes: list[Scene | None] = [None] * count
        self._oldest = 0
        self._order = np.arange(0)
        for _ in range(0, count, 64):
            self.renew(64)

    def renew(self, count: int) -> None:
        """Replace the oldest ``count`` entries by fresh scenes."""
        places = [(self._oldest + k) % len(self._scenes) for k in range(count)]
        scenes = [random_scene(place % len(THINGS), self._rng) for place in places]
        latents = encoded(self._vae, np.stack([self._gallery.image(scene) for scene in scenes]), self._device)
        self._latents[torch.tensor(places, device=self._device)] = (latents * self._scale).half()
        for place, scene in zip(places, scenes, strict=True):
            self._scenes[place] = scene
        self._oldest = (self._oldest + count) % len(self._scenes)

    def draw(self, count: int) -> tuple[list[Scene], Tensor]:
        """Draw scenes without replacement until all were seen: the scenes and latents (count, 4, 16, 16), float32."""
        if len(self._order) < count:
            self._order = self._rng.permutation(len(self._scenes))
        chosen, self._order = self._order[:count], self._order[count:]
        scenes = [scene for place in chosen if (scene := self._scenes[place]) is not None]
        return scenes, self._latents[torch.from_numpy(chosen).to(self._device)].float()
