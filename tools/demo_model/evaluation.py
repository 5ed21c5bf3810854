"""Measuring a finished pipeline folder against the true renders.

A drawn image is compared with the render of every known thing at every size and shift, on the background
and in the colour that the prompt named; the thing of the nearest render is what was drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from tools.demo_model.scenes import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    EDGE,
    MAX_SHIFT,
    TRAINED_SIZES,
    Gallery,
    Scene,
    caption,
    colour_allowed,
    held_out,
)  # fmt: skip
from tools.demo_model.things import THINGS

STEPS = 16
GUIDANCE = 2.5
_HALF = EDGE // 2


def _shifts(size: int) -> range:
    limit = min(MAX_SHIFT, (EDGE - size) // 2)
    return range(-limit, limit + 1)


_PLACES = [(size, (right, down)) for size in TRAINED_SIZES for right in _shifts(size) for down in _shifts(size)]


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the demo pipeline in float32 on the CPU, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> np.ndarray:
    """Draw one image a prompt, each with its own seed counted from ``seed``: uint8 (count, 64, 64, 3)."""
    images = []
    for start in tqdm(range(0, len(prompts), 16), desc="draw", unit="batch", disable=len(prompts) < 64):
        chunk = list(prompts[start : start + 16])
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(chunk))]
        drawn = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        ).images
        images.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(images)


def halved(images: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels: (..., 64, 64, channels) to float32 (..., 32, 32, channels)."""
    shape = (*images.shape[:-3], _HALF, 2, _HALF, 2, images.shape[-1])
    return images.reshape(shape).mean((-4, -2), dtype=np.float32)


class RenderBank:
    """True renders of every thing in one colour, at all sizes and shifts, at half resolution."""

    def __init__(self, gallery: Gallery, colour: str = "") -> None:
        self._canvases = [self._placed(gallery, thing, colour) for thing in range(len(THINGS))]

    @staticmethod
    def _placed(gallery: Gallery, thing: int, colour: str) -> np.ndarray:
        by_size = {size: gallery.artwork(thing, size, colour) for size in TRAINED_SIZES}
        canvases = np.zeros((len(_PLACES), EDGE, EDGE, 4), np.uint8)
        for canvas, (size, shift) in zip(canvases, _PLACES, strict=True):
            left, top = (EDGE - size) // 2 + shift[0], (EDGE - size) // 2 + shift[1]
            canvas[top : top + size, left : left + size] = by_size[size]
        return halved(canvases).round().astype(np.uint8)

    def distances(self, images: np.ndarray, background: str) -> np.ndarray:
        """Return the mean squared error of each image to its nearest render of each thing: (images, things)."""
        flat = halved(images).reshape(len(images), -1)
        ground = np.array(BACKGROUNDS[background], np.float32)
        result = np.empty((len(images), len(self._canvases)), np.float32)
        for thing, canvases in enumerate(self._canvases):
            opacity = canvases[..., 3:].astype(np.float32) / 255
            renders = (canvases[..., :3] + (1 - opacity) * ground).reshape(len(canvases), -1)
            squares = (renders**2).sum(1)[None] + (flat**2).sum(1)[:, None] - 2 * flat @ renders.T
            result[:, thing] = squares.min(1) / flat.shape[1]
        return result


@dataclass(frozen=True)
class Score:
    """How a set of scenes was drawn."""

    title: str
    count: int
    accuracy: float
    background_accuracy: float
    psnr: float
    wrong: tuple[str, ...]

    def line(self) -> str:
        """Return the score as a line of text."""
        text = (
            f"{self.title}: {self.accuracy:.1%} of {self.count} nearest to their own name, right background "
            f"{self.background_accuracy:.1%}, PSNR {self.psnr:.1f} dB"
        )
        return text + (f"; wrong: {', '.join(self.wrong)}" if self.wrong else "")


def _background_of(image: np.ndarray) -> str:
    """Name the palette colour nearest to the image's corners."""
    corners = np.concatenate(
        [image[y, x].reshape(-1, 3) for y in (slice(3), slice(-3, None)) for x in (slice(3), slice(-3, None))]
    )
    shade = np.median(corners.astype(np.float32), 0)
    return min(BACKGROUNDS, key=lambda name: float(((shade - np.array(BACKGROUNDS[name])) ** 2).sum()))


def score(
    pipeline: StableDiffusionPipeline,
    gallery: Gallery,
    scenes: Sequence[Scene],
    title: str,
    seed: int = 1000,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> tuple[Score, np.ndarray]:
    """Draw every scene's plain caption and name what was drawn; returns the score and the images."""
    images = draw(pipeline, [caption(scene) for scene in scenes], seed, steps, guidance)
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, scene in enumerate(scenes):
        groups[scene.colour][scene.background].append(place)
    right, errors, wrong = 0, [], []
    for colour, by_background in groups.items():
        bank = RenderBank(gallery, colour)
        for background, places in by_background.items():
            distances = bank.distances(images[places], background)
            for place, row in zip(places, distances, strict=True):
                drawn, wanted = int(row.argmin()), scenes[place].thing
                right += drawn == wanted
                errors.append(row[wanted])
                if drawn != wanted:
                    wrong.append(f"{caption(scenes[place])} -> {THINGS[drawn].name}")
    grounds = np.mean([_background_of(p) == s.background for p, s in zip(images, scenes, strict=True)])
    psnr = float(np.mean(-10 * np.log10(np.array(errors) / 255**2)))
    return Score(title, len(scenes), right / len(scenes), float(grounds), psnr, tuple(wrong)), images


def known_scenes() -> list[Scene]:
    """Return one plain scene of each thing."""
    return [Scene(thing) for thing in range(len(THINGS))]


def unseen_backgrounds() -> list[Scene]:
    """Return every thing on every background that it was never trained on."""
    scenes = [Scene(thing, "", ground) for thing in range(len(THINGS)) for ground in BACKGROUND_NAMES]
    return [scene for scene in scenes if held_out(scene)]


def unseen_colours() -> list[Scene]:
    """Return every thing in every colour that it was never trained in."""
    scenes = [Scene(thing, c) for thing in range(len(THINGS)) for c in COLOUR_NAMES if colour_allowed(thing, c)]
    return [scene for scene in scenes if held_out(scene)]


def seed_difference(pipeline: StableDiffusionPipeline, seeds: tuple[int, int] = (1, 2001)) -> np.ndarray:
    """Return each thing's mean absolute pixel difference, of 255, between two seeds: (things,)."""
    prompts = [caption(scene) for scene in known_scenes()]
    first, second = (draw(pipeline, prompts, seed).astype(np.float32) for seed in seeds)
    return np.abs(first - second).mean((1, 2, 3))
