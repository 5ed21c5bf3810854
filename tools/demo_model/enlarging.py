"""The upscaler that belongs to the demo model: 64 pixels to 256, trained on the artwork's vectors.

It learns to undo what the demo model's own autoencoder does to a scene, with a little noise on the latents for what the
denoiser does to it. The network is Real-ESRGAN's compact one (SRVGGNetCompact), as spandrel builds and reads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tools.demo_model.scenes import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    COLOURS,
    EDGE,
    TRAINED_SIZES,
    tinted,
)  # fmt: skip
from tools.demo_model.vectors import SCALE
from worker.engine.compatibility import import_spandrel

UPSCALER_FILE = "sharp-x4-upscaler.safetensors"
CHANNELS, LAYERS = 32, 10
_LARGE = EDGE * SCALE
_BATCH, _CROP = 16, 32
_ROUND = 128  # scenes that are drawn at once, and seen _CROPS times each in other crops
_CROPS = 6
_KEPT = 0.998  # of the averaged weights at each step
_MAX_NOISE = 0.2  # of the latents' own spread
# Each lesson's share of the time, highest learning rate, and weight of steep edges.
LESSONS = ((0.65, 1.5e-3, 0.0), (0.35, 8e-4, 0.7))
_HELD_OUT = 10  # each tenth emoji is for measuring only

Pair = tuple[torch.Tensor, torch.Tensor]  # what the model would draw, and the artwork four times as large


class Vectors:
    """The artwork as ``vectors.render_vectors`` wrote it."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = json.loads((folder / "vectors.json").read_text())
        self._images = np.load(folder / "vectors.npy", mmap_mode="r")
        self.trained = [place for place in range(len(self.names)) if place % _HELD_OUT]
        self.held_out = [place for place in range(len(self.names)) if not place % _HELD_OUT]

    def scene(
        self, place: int, size: int, shift: tuple[int, int] = (0, 0), colour: str = "", background: str = "white"
    ) -> np.ndarray:
        """Draw a scene four times as large: uint8 (256, 256, 3). ``size`` and ``shift`` are in pixels of that."""
        artwork = np.asarray(self._images[place])
        artwork = tinted(artwork, COLOURS[colour]) if colour else artwork
        artwork = np.asarray(Image.fromarray(artwork).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        image = np.empty((_LARGE, _LARGE, 3), np.float32)
        image[:] = BACKGROUNDS[background]
        left, top = (_LARGE - size) // 2 + shift[0], (_LARGE - size) // 2 + shift[1]
        window = image[top : top + size, left : left + size]
        window *= 1 - artwork[..., 3:] / 255
        window += artwork[..., :3]
        return image.round().clip(0, 255).astype(np.uint8)

    def random_scene(self, places: list[int], rng: np.random.Generator) -> np.ndarray:
        """Draw one of ``places`` as training scenes are: a quarter tinted, half on a coloured background."""
        size = SCALE * int(rng.choice(TRAINED_SIZES)) + int(rng.integers(-SCALE, SCALE + 1))
        limit = min(3 * SCALE, (_LARGE - size) // 2)
        shift = int(rng.integers(-limit, limit + 1)), int(rng.integers(-limit, limit + 1))
        colour = str(rng.choice(COLOUR_NAMES)) if rng.random() < 0.25 else ""
        background = str(rng.choice(BACKGROUND_NAMES)) if rng.random() < 0.5 else "white"
        return self.scene(int(rng.choice(places)), size, shift, colour, background)


class Blur:
    """What the demo model's autoencoder makes of a scene at its own size."""

    def __init__(self, folder: Path) -> None:
        self._vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, scenes: np.ndarray, noise: float, generator: torch.Generator) -> torch.Tensor:
        """Return scenes (count, 256, 256, 3) at 64 pixels as the model would draw them: floats (count, 3, 64, 64)."""
        small = [Image.fromarray(scene).resize((EDGE, EDGE), Image.Resampling.BICUBIC) for scene in scenes]
        pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
        latents = self._vae.encode(pixels * 2 - 1).latent_dist.mode()
        spread = torch.randn(latents.shape, generator=generator) * latents.std((0, 2, 3), keepdim=True)
        amounts = torch.rand((len(scenes), 1, 1, 1), generator=generator) * noise
        return ((self._vae.decode(latents + spread * amounts).sample + 1) / 2).clamp(0, 1)


def network() -> nn.Module:
    """Build the network with fresh weights."""
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    built: nn.Module = Compact(num_feat=CHANNELS, num_conv=LAYERS, upscale=SCALE)
    return built


def _crops(vectors: Vectors, blur: Blur, rng: np.random.Generator, generator: torch.Generator) -> Iterator[Pair]:
    """Yield batches without end: crops of what the model would draw, and of the same artwork four times as large."""
    while True:
        scenes = np.stack([vectors.random_scene(vectors.trained, rng) for _ in range(_ROUND)])
        small = torch.cat([blur(part, _MAX_NOISE, generator) for part in np.split(scenes, _ROUND // _BATCH)])
        large = torch.from_numpy(scenes).permute(0, 3, 1, 2)
        for place in rng.permuted(np.tile(np.arange(_ROUND), (_CROPS, 1)), axis=1).reshape(-1, _BATCH):
            x, y = (int(rng.integers(0, EDGE - _CROP + 1)) for _ in range(2))
            inputs = small[place, :, y : y + _CROP, x : x + _CROP]
            wanted = large[place, :, SCALE * y : SCALE * (y + _CROP), SCALE * x : SCALE * (x + _CROP)].float() / 255
            if rng.random() < 0.5:
                inputs, wanted = inputs.flip(-1), wanted.flip(-1)
            yield inputs, wanted


def _sharpness(image: torch.Tensor) -> torch.Tensor:
    """Return how steep the edges of each 8x8 window are: the root of the mean squared step between neighbours."""
    steps = image.diff(dim=-1)[..., 1:, :] ** 2 + image.diff(dim=-2)[..., 1:] ** 2
    return (functional.avg_pool2d(steps, 8) + 1e-5).sqrt()


def _loss(made: torch.Tensor, wanted: torch.Tensor, steepness: float) -> torch.Tensor:
    """Return the mean difference of pixels, of the steps between neighbours, and of how steep edges are.

    Where an edge lies can only be guessed at within a pixel, and the mean of all guesses is soft; the last part, which
    asks for an edge as steep as the artwork's anywhere near, chooses one.
    """
    difference = made - wanted
    steps = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    steep = (_sharpness(made) - _sharpness(wanted)).abs().mean() if steepness else 0.0
    return difference.abs().mean() + steps + steepness * steep


def _lesson(
    model: nn.Module,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    minutes: float,
    rate: float,
    steepness: float,
) -> None:
    """Train for ``minutes`` of processor time and leave the averaged weights in the model."""
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    started, step, shown = time.process_time(), 0, 0.0
    while (spent := (time.process_time() - started) / 60) < minutes:
        fall = 0.5 + 0.5 * float(np.cos(np.pi * spent / minutes))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * fall + 1e-6
        inputs, wanted = next(batches)
        loss = _loss(model(inputs), wanted, steepness)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        kept = min(_KEPT, step / (step + 10))
        for name, value in model.state_dict().items():
            averaged[name].lerp_(value, 1 - kept)
        shown = 0.98 * shown + 0.02 * loss.item() if shown else loss.item()
        if step % 100 == 0:
            print(f"step {step}, {spent:.1f} min, loss {shown:.4f}", flush=True)
    model.load_state_dict(averaged)


def train_upscaler(folder: Path, renders: Path, minutes: float) -> None:
    """Train for ``minutes`` of processor time on one thread; write the weights beside the demo model."""
    torch.set_num_threads(1)
    torch.manual_seed(11)
    model = network().train()
    batches = _crops(Vectors(renders), Blur(folder), np.random.default_rng(11), torch.Generator().manual_seed(11))
    for share, rate, steepness in LESSONS:
        _lesson(model, batches, share * minutes, rate, steepness)
    save(model, folder / "companions" / UPSCALER_FILE)


def save(model: nn.Module, path: Path) -> None:
    """Write the weights as fp16, readable by all."""
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


def enlarged(folder: Path, images: np.ndarray) -> np.ndarray:
    """Enlarge uint8 images (count, 64, 64, 3) with the finished upscaler: uint8 (count, 256, 256, 3)."""
    spandrel = import_spandrel()
    model = spandrel.ModelLoader().load_from_file(folder / "companions" / UPSCALER_FILE).model.float().eval()
    made = []
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            made.append((model(pixels)[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    return np.stack(made)


def bicubic(images: np.ndarray) -> np.ndarray:
    """Enlarge uint8 images (count, height, width, 3) four times without a network, for comparison."""
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    large = functional.interpolate(pixels, scale_factor=SCALE, mode="bicubic").clamp(0, 255)
    return large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def steepness(images: np.ndarray) -> float:
    """Return the root of the mean squared step between neighbouring pixels, of 255."""
    values = images.astype(np.float32)
    return float(np.sqrt((np.diff(values, axis=-2) ** 2).mean() + (np.diff(values, axis=-3) ** 2).mean()))


def psnr(images: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean PSNR of images to those wanted, in dB."""
    errors = ((images.astype(np.float32) - wanted) ** 2).mean((1, 2, 3))
    return float((-10 * np.log10(errors / 255**2)).mean())


def unseen_pairs(folder: Path, renders: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return scenes of emoji that training never saw: at 64 pixels from the autoencoder, and at 256 as they are."""
    vectors, rng = Vectors(renders), np.random.default_rng(5)
    large = np.stack([vectors.random_scene([place], rng) for place in vectors.held_out])
    blur, generator = Blur(folder), torch.Generator().manual_seed(5)
    small = torch.cat([blur(part, 0.0, generator) for part in np.array_split(large, len(large) // _BATCH)])
    return (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), large
