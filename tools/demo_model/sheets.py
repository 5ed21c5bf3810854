"""The contact sheet and the loss plot."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PROMPTS = (
    "a red apple", "a slice of pizza", "a rocket", "a panda", "a house", "face with sunglasses",
    "a unicorn", "a birthday cake", "a butterfly", "a guitar", "a sailboat", "a castle",
    "a fox on a light blue background", "a tulip on a black background", "a penguin on a pink background",
    "a car on a yellow background", "an octopus on a blue background", "a cactus on an orange background",
    "a purple frog", "a blue strawberry", "a green robot on a yellow background", "a pink elephant",
    "an orange whale on a light blue background", "a purple crown on a gray background",
)  # fmt: skip
_CELL = 192
_MARGIN = 6


def contact_sheet(images: np.ndarray, prompts: tuple[str, ...], path: Path, columns: int = 6) -> None:
    """Lay uint8 images (count, height, width, 3) out with their prompts under them."""
    rows = -(-len(images) // columns)
    strip = 34
    sheet = Image.new("RGB", (columns * (_CELL + _MARGIN) + _MARGIN, rows * (_CELL + strip) + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        left = _MARGIN + place % columns * (_CELL + _MARGIN)
        top = _MARGIN + place // columns * (_CELL + strip)
        sheet.paste(Image.fromarray(image).resize((_CELL, _CELL), Image.Resampling.BICUBIC), (left, top))
        pen.text((left + 2, top + _CELL + 1), _wrapped(prompt, 27), fill="black", font=font, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _wrapped(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width)
    return text[:cut] + "\n" + text[cut + 1 :]


def loss_plot(work: Path, path: Path) -> None:
    """Plot the denoiser's losses over the samples seen."""
    log = json.loads((work / "unet" / "log.json").read_text())
    samples = [entry["samples"] / 1000 for entry in log]
    figure, axes = plt.subplots(figsize=(7, 4))
    for key, title in (("loss", "training"), ("seen", "trained combinations"), ("unseen", "held-out backgrounds")):
        axes.plot(samples, [entry[key] for entry in log], label=title)
    axes.set(xlabel="thousand samples", ylabel="squared error of the velocity", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
