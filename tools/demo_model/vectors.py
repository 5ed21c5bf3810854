"""The artwork once more, from its vectors: four times as large as the demo model draws.

The bitmaps inside the font are 128 pixels wide, too few for an image of 256. The same artwork as SVG comes in the npm
package ``@iconify-json/noto`` (Apache-2.0). It is fetched by name and never shipped; ``resvg-py`` rasterizes it.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tools.demo_model.artwork import premultiplied, usable

VECTORS_PACKAGE = "@iconify-json/noto@1.2.9"
SCALE = 4
EDGE = 256  # of an artwork as it is stored: no scene shows it larger
_CANVAS = 2 * EDGE


def fetch_vectors(folder: Path) -> None:
    """Download the package into ``folder`` and unpack its two lists: the drawings, and which character each is of."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("iconify-*.tgz")):
        subprocess.run(["npm", "pack", VECTORS_PACKAGE], cwd=folder, check=True)
    with tarfile.open(next(folder.glob("iconify-*.tgz"))) as archive:
        for name in ("icons.json", "chars.json"):
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise FileNotFoundError(f"package/{name} is not in the package of vectors")
            (folder / name).write_bytes(member.read())


def _rasterized(body: str, width: int, height: int) -> Image.Image | None:
    """Rasterize one drawing, cropped and centred on a transparent square as the font's bitmaps are."""
    import resvg_py

    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    drawing = f'<svg {names} viewBox="0 0 {width} {height}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=drawing, width=_CANVAS, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getbbox()
    if box is None:
        return None
    cropped = image.crop(box)
    edge = max(cropped.size)
    square = Image.new("RGBA", (edge, edge), (0, 0, 0, 0))
    square.paste(cropped, ((edge - cropped.width) // 2, (edge - cropped.height) // 2))
    return square


def render_vectors(source: Path, folder: Path) -> int:
    """Rasterize every emoji that has vectors; write ``vectors.npy`` and ``vectors.json``. Returns how many there are.

    The array is premultiplied uint8, (emoji, EDGE, EDGE, 4); the list has their names in the same order.
    """
    drawings = json.loads((source / "icons.json").read_text())
    by_character = json.loads((source / "chars.json").read_text())
    names: list[str] = []
    images: list[np.ndarray] = []
    for entry in tqdm(json.loads((source / "names.json").read_text()), desc="vectors", unit="emoji"):
        name = by_character.get(entry["hexcode"].lower().replace("-fe0f", ""))
        icon = drawings["icons"].get(name) if usable(entry) else None
        if icon is None:
            continue
        width, height = (icon.get(side, drawings.get(side, 128)) for side in ("width", "height"))
        image = _rasterized(icon["body"], width, height)
        if image is not None:
            names.append(entry["label"])
            images.append(premultiplied(image, EDGE))
    np.save(folder / "vectors.npy", np.stack(images))
    (folder / "vectors.json").write_text(json.dumps(names))
    return len(names)
