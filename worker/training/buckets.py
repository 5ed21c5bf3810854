"""Sizes for images of every shape: as many pixels as the model knows, and as little cut away as can be."""

from collections.abc import Iterator
from math import sqrt

from PIL import Image

from worker.core.image import Raster
from worker.media.images import to_pil

_MAX_ASPECT = 2.0


def sizes(side: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield widths and heights in pixels of at most `side` x `side` pixels in area, each a multiple of `multiple`."""
    area = side * side
    for width in range(multiple, int(side * sqrt(_MAX_ASPECT)) + multiple, multiple):
        height = area // width // multiple * multiple
        if height and max(width, height) <= _MAX_ASPECT * min(width, height):
            yield width, height


def bucket(width: int, height: int, side: int, multiple: int) -> tuple[int, int]:
    """Return the size for an image of these pixels: the one whose shape is nearest to its own."""
    aspect = width / height
    return min(sizes(side, multiple), key=lambda size: (_stretch(size[0] / size[1], aspect), -size[0] * size[1]))


def _stretch(one: float, other: float) -> float:
    return max(one / other, other / one)


def fitted(raster: Raster, size: tuple[int, int]) -> Image.Image:
    """Return the image at this size: scaled to cover it, and cut in its middle."""
    image, (width, height) = to_pil(raster), size
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.crop((left, top, left + width, top + height))
