"""A part of an image cut out at another size, and put back with a seam that nobody sees."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from worker.core.image import Raster
from worker.media.images import to_pil


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of whole pixels: `right` and `bottom` are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    def grown(self, margin: int, width: int, height: int) -> "Box":
        """Return this with a margin on each side, within an image of this size."""
        return Box(
            max(0, self.left - margin),
            max(0, self.top - margin),
            min(width, self.right + margin),
            min(height, self.bottom + margin),
        )

    def holds_centre_of(self, other: "Box") -> bool:
        """True if the centre of `other` lies in this."""
        across, down = other.left + other.right, other.top + other.bottom
        return 2 * self.left <= across < 2 * self.right and 2 * self.top <= down < 2 * self.bottom

    def shares(self, image: Raster) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom as shares of an image's sides."""
        return (
            self.left / image.width,
            self.top / image.height,
            self.right / image.width,
            self.bottom / image.height,
        )


def box_of(region: Iterable[float], image: Raster) -> Box:
    """Return the pixels of a region, left, top, right and bottom as shares of the image's sides; at least one."""
    left, top, right, bottom = region
    first, above = (min(round(left * image.width), image.width - 1), min(round(top * image.height), image.height - 1))
    return Box(first, above, max(first + 1, round(right * image.width)), max(above + 1, round(bottom * image.height)))


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a part is taken from: `box` is drawn again, `seam` pixels around it are mixed, all of `around` is seen."""

    box: Box
    around: Box
    seam: int

    @classmethod
    def of(cls, box: Box, image: Raster, shape: tuple[int, int], *, padding: float, feather: float) -> "Cut":
        """Return the cut around `box` with the shape of `shape`, a width and a height, as far as the image has room.

        `padding` and `feather` are shares of the longer side of `box`.
        """
        longer, (width, height) = max(box.width, box.height), shape
        margin = 2 * math.ceil(padding * longer)
        wide, high = box.width + margin, box.height + margin
        wide, high = max(wide, math.ceil(high * width / height)), max(high, math.ceil(wide * height / width))
        wide, high = min(wide, image.width), min(high, image.height)
        left = _placed((box.left + box.right - wide) // 2, wide, image.width)
        top = _placed((box.top + box.bottom - high) // 2, high, image.height)
        return cls(box, Box(left, top, left + wide, top + high), math.ceil(feather * longer))

    def taken(self, image: Raster, width: int, height: int) -> tuple[Raster, Raster]:
        """Return the part at `width` x `height`, and the mask of what is drawn again: white, the seam too."""
        around = self.around
        part = to_pil(image).crop((around.left, around.top, around.right, around.bottom))
        inner = self.box.grown(self.seam, image.width, image.height)
        mask = Image.new("L", (around.width, around.height))
        corner = (inner.right - around.left - 1, inner.bottom - around.top - 1)
        ImageDraw.Draw(mask).rectangle((inner.left - around.left, inner.top - around.top, *corner), fill=255)
        size = (width, height)
        drawn = mask.resize(size, Image.Resampling.NEAREST).convert("RGB")
        return _raster(part.convert("RGB").resize(size, Image.Resampling.LANCZOS)), _raster(drawn)

    def put_back(self, part: Raster, image: Raster) -> Raster:
        """Return `image` with `part` in its place: whole in the box, less and less through the seam."""
        import numpy as np  # where it is used: few requests need it

        around = self.around
        fitted = to_pil(part).convert("RGB").resize((around.width, around.height), Image.Resampling.LANCZOS)
        across = _ramp(around.left, around.right, self.box.left, self.box.right, self.seam)
        down = _ramp(around.top, around.bottom, self.box.top, self.box.bottom, self.seam)
        shares = np.outer(down, across)[..., None]
        pixels = np.array(to_pil(image).convert("RGB"))
        place = pixels[around.top : around.bottom, around.left : around.right]
        mixed = place + (np.asarray(fitted, np.float64) - place) * shares
        pixels[around.top : around.bottom, around.left : around.right] = np.rint(mixed).astype(np.uint8)
        return Raster("RGB", image.width, image.height, pixels.tobytes())


def _placed(start: int, length: int, whole: int) -> int:
    return max(0, min(start, whole - length))


def _ramp(start: int, end: int, inner: int, outer: int, seam: int) -> list[float]:
    """Return the share of the new part for each pixel from `start` to `end`: 1 from `inner` to `outer`."""
    distances = (max(inner - at, at - (outer - 1), 0) for at in range(start, end))
    return [max(0.0, 1 - distance / (seam + 1)) for distance in distances]


def _raster(image: Image.Image) -> Raster:
    return Raster("RGB", image.width, image.height, image.tobytes())
