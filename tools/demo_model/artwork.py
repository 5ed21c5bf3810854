"""Fetching and rendering of the emoji artwork.

The font comes from the Debian package ``fonts-noto-color-emoji`` (artwork Apache-2.0, font OFL-1.1), the names from the
npm package ``emojibase-data`` (MIT, built from Unicode CLDR). Both are fetched by name and never shipped.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

FONT_PACKAGE = "fonts-noto-color-emoji"
NAMES_PACKAGE = "emojibase-data@17.0.0"
FONT_SIZE = 109  # the one bitmap size inside the font
SIZES = tuple(range(44, 61, 2))  # edge lengths, in pixels of a 64-pixel image
_FLAGS_GROUP = 9
_COMPONENTS_GROUP = 2


def fetch(folder: Path) -> None:
    """Download the two packages into ``folder`` and unpack the font and the list of names."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.deb")):
        subprocess.run(["apt-get", "download", FONT_PACKAGE], cwd=folder, check=True)
    subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder / "font")], check=True)
    if not list(folder.glob("*.tgz")):
        subprocess.run(["npm", "pack", NAMES_PACKAGE], cwd=folder, check=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/en/data.json")
        if member is None:
            raise FileNotFoundError("package/en/data.json is not in the names package")
        (folder / "names.json").write_bytes(member.read())


def usable(entry: dict[str, Any]) -> bool:
    """Say whether an entry of the list of names is an emoji to draw: no flag, and no part of one."""
    return entry.get("group") not in (None, _FLAGS_GROUP, _COMPONENTS_GROUP)


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Draw one emoji, cropped and centred on a transparent square; None if the font lacks it or it falls apart."""
    width = font.getlength(text)
    if not 0 < width <= 150:
        return None
    canvas = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None or (np.asarray(canvas)[..., 3] > 8).sum() < 60:
        return None
    cropped = canvas.crop(box)
    edge = max(cropped.size)
    square = Image.new("RGBA", (edge, edge), (0, 0, 0, 0))
    square.paste(cropped, ((edge - cropped.width) // 2, (edge - cropped.height) // 2))
    return square


def premultiplied(image: Image.Image, size: int) -> np.ndarray:
    """Resize to ``size`` and multiply colour by opacity: uint8, (size, size, 4)."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    return pixels.round().astype(np.uint8)


def render(source: Path, folder: Path) -> dict[str, Any]:
    """Render every emoji except flags at every size of ``SIZES``; write one array a size and the index.

    Returns the index: ``labels`` (names in array order) and ``tags`` (their search words).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = next(source.glob("font/**/NotoColorEmoji.ttf"))
    font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    labels: list[str] = []
    tags: list[list[str]] = []
    images: dict[int, list[np.ndarray]] = {size: [] for size in SIZES}
    seen: set[bytes] = set()
    for entry in tqdm(json.loads((source / "names.json").read_text()), desc="render", unit="emoji"):
        if not usable(entry):
            continue
        image = _draw(entry["emoji"], font)
        if image is None or image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        labels.append(entry["label"])
        tags.append(entry.get("tags", []))
        for size in SIZES:
            images[size].append(premultiplied(image, size))
    for size, stack in images.items():
        np.save(folder / f"artwork-{size}.npy", np.stack(stack))
    index = {"labels": labels, "tags": tags}
    (folder / "index.json").write_text(json.dumps(index))
    return index
