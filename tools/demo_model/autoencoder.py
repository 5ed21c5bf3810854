"""The image autoencoder: 64x64 images to 16x16 latents with four channels, and back.

Three latent channels are held near the image's own 4x4 means (brightness, two colour differences), one is free. So a
latent is a thumbnail with a hint, which a small denoiser learns far sooner than an arbitrary code; the decoder, trained
on emoji alone, draws the edges anew.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tools.demo_model.crew import Crew
from tools.demo_model.muon import MuonAdam
from tools.demo_model.scenes import BACKGROUNDS, EDGE, Gallery, Scene, composed, random_placement, random_scene
from tools.demo_model.schedule import Clock, ExponentialAverage
from tools.demo_model.things import THINGS

LATENT_NOISE = 0.08  # standard deviation added while training; a whole latent has about one
_LOG_VARIANCE = 2 * float(np.log(0.02))  # what the encoder reports as its uncertainty, fixed
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.299, -0.587, 0.886], [0.701, -0.587, -0.114]])
_YCC_MEAN = torch.tensor([0.38, -0.13, 0.10])  # over training images
_YCC_STD = torch.tensor([0.51, 0.47, 0.35])
_BATCH = 16


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder, its variance output fixed."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=EDGE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    return model


def fix_variance(model: AutoencoderKL) -> None:
    """Make the encoder report the same small variance for every image."""
    with torch.no_grad():
        model.quant_conv.weight[4:] = 0
        model.quant_conv.bias[4:] = _LOG_VARIANCE


def to_tensor(images: np.ndarray) -> Tensor:
    """Turn uint8 (count, height, width, 3) into float (count, 3, height, width) in -1..1, channels last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def anchor(images: Tensor) -> Tensor:
    """Return the thumbnail (count, 3, 16, 16) that the first three latent channels are held to."""
    means = functional.avg_pool2d(images, 4)
    turned = torch.einsum("ij,bjhw->bihw", _YCC.to(means), means)
    return (turned - _YCC_MEAN.to(means)[:, None, None]) / _YCC_STD.to(means)[:, None, None]


def _background(rng: np.random.Generator) -> np.ndarray:
    """Draw a plain colour or a gradient between two: (EDGE, EDGE, 3) or (3,)."""
    if rng.random() < 0.6:
        return np.array(list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))], np.float32)
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-0.5, 0.5, EDGE)
    ramp = np.clip(np.cos(angle) * across[None] + np.sin(angle) * across[:, None] + 0.5, 0, 1)[..., None]
    return (first * ramp + second * (1 - ramp)).astype(np.float32)


def training_batch(gallery: Gallery, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw images, uint8 (count, EDGE, EDGE, 3): known things for the most part, any emoji for the rest."""
    images = []
    for _ in range(count):
        if rng.random() < 0.75:
            image = gallery.image(random_scene(int(rng.integers(len(THINGS))), rng, wide=True))
        else:
            size, shift = random_placement(rng, wide=True)
            artwork = gallery.any_artwork(int(rng.integers(len(gallery.labels))), size)
            image = composed(artwork, _background(rng), shift)
        images.append(image[:, ::-1] if rng.random() < 0.5 else image)
    return np.stack(images)


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def _loss(model: AutoencoderKL, images: Tensor, train_encoder: bool) -> Tensor:
    with torch.set_grad_enabled(train_encoder):
        means = model.encode(images).latent_dist.mean
    drawn = model.decode(means + LATENT_NOISE * torch.randn_like(means)).sample.float()
    loss = (drawn - images).abs().mean() + (drawn - images).square().mean()
    for mine, true in zip(_edges(drawn), _edges(images), strict=True):
        loss = loss + 0.5 * (mine - true).abs().mean()
    if train_encoder:
        means = means.float()
        free = means[:, 3]
        loss = loss + 0.1 * (means[:, :3] - anchor(images)).square().mean()
        loss = loss + 0.02 * (free.mean().square() + (free.std() - 1).square())
    return loss


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, gallery: Gallery) -> float:
    """Measure the mean PSNR in dB of 64 things on white, encoded and decoded."""
    images = to_tensor(np.stack([gallery.image(Scene(k * 5)) for k in range(64)])).to(model.device)
    drawn = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    errors = ((drawn - images) / 2).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())


def train(
    rank: int, size: int, work: Path, minutes: float, rate: float, device: str = "cpu", decoder_only: bool = False
) -> None:
    """Train for ``minutes`` of wall clock; resume from ``work/vae`` if it is there.

    With ``decoder_only`` the encoder stays as it is, so latents made with it stay true.
    """
    folder = work / "vae"
    gallery = Gallery(work / "render")
    log: list[dict[str, Any]] = []
    if (folder / "config.json").exists():
        model = AutoencoderKL.from_pretrained(folder)
        log = json.loads((folder / "log.json").read_text())
    else:
        model = new_autoencoder()
    model = model.to(device, memory_format=torch.channels_last).train()
    fix_variance(model)
    if decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    optimizer = MuonAdam(model.named_parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    average = ExponentialAverage(trained)
    crew = Crew(rank, size, trained)
    clock = Clock(minutes)
    rng = np.random.default_rng([len(log), rank])
    torch.manual_seed(len(log) * 100 + rank)
    progress = tqdm(total=100, desc="vae", unit="%", disable=rank > 0)
    losses: list[float] = []
    while True:
        images = to_tensor(training_batch(gallery, rng, _BATCH)).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = _loss(model, images, not decoder_only)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step(rate * clock.rate(len(losses)))
        fix_variance(model)
        losses.append(loss.item())
        if not crew.stepped():
            continue
        average.update()
        fraction = crew.agreed(clock.fraction())
        if fraction >= 1:
            break
        if rank == 0 and clock.due():
            _save(model, average, folder, log, losses, gallery, time.time())
            progress.update(int(100 * fraction) - progress.n)
            progress.set_postfix(loss=round(log[-1]["loss"], 4), psnr=round(log[-1]["psnr"], 2))
    if rank == 0:
        _save(model, average, folder, log, losses, gallery, time.time())


def _save(
    model: AutoencoderKL,
    average: ExponentialAverage,
    folder: Path,
    log: list[dict[str, Any]],
    losses: list[float],
    gallery: Gallery,
    now: float,
) -> None:
    with average.swapped_in():
        model.eval()
        psnr = reconstruction_psnr(model, gallery)
        model.save_pretrained(folder)
        model.train()
    log.append({"time": now, "steps": len(losses), "loss": float(np.mean(losses[-200:])), "psnr": psnr})
    (folder / "log.json").write_text(json.dumps(log))
