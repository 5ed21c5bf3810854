"""What of an image is learnt, where its shape is none that it can be learnt at: its middle, several places, or all."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from worker.core.image import Raster
from worker.core.training import TrainingOptions
from worker.media.images import to_pil
from worker.training.buckets import bucket, own_size

_SHAPE = 0.02  # share by which the shapes of an image and its source may differ, and count as one


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of an image: scaled to `scaled`, and of that what lies from `corner` on at the `size` of the lesson."""

    scaled: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]

    def of(self, raster: Raster) -> Image.Image:
        """Return this part of an image, or of its mask, at its size."""
        image, (left, top) = to_pil(raster).resize(self.scaled, Image.Resampling.LANCZOS), self.corner
        return image.crop((left, top, left + self.size[0], top + self.size[1]))


def cuts_of(width: int, height: int, digest: str, options: TrainingOptions, grid: tuple[int, int]) -> list[Cut]:
    """Return the parts of an image that are learnt in turns. `grid` has the side and the multiple of sizes.

    Those at random follow from the seed and the image; they are equal where nothing of it has to be cut away.
    """
    side, multiple = options.resolution or grid[0], grid[1]
    if options.crop == "none":
        size = own_size(width, height, side, multiple)
        return [Cut(size, size, (0, 0))]
    size = bucket(width, height, side, multiple)
    scaled = _covering(width, height, size)
    if options.crop == "center":
        return [Cut(scaled, size, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2))]
    return [Cut(scaled, size, _random(scaled, size, f"{options.seed} {digest} {i}")) for i in range(options.crops)]


def cut_beside(
    cut: Cut, image: tuple[int, int], source: tuple[int, int], options: TrainingOptions, grid: tuple[int, int]
) -> Cut:
    """Return the part of a source (width, height) that is read beside this part of its image.

    The same one where both are of one shape; else its own middle, or all of it.
    """
    if abs(source[0] / source[1] / (image[0] / image[1]) - 1) <= _SHAPE:
        return cut
    return cuts_of(*source, "", steadily(options), grid)[0]


def steadily(options: TrainingOptions) -> TrainingOptions:
    """Return the options for images that are only measured with, or are of the class: their middle, not any part."""
    return options.model_copy(update={"crop": "center"}) if options.crop == "random" else options


def _covering(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    scale = max(size[0] / width, size[1] / height)
    return max(size[0], round(width * scale)), max(size[1], round(height * scale))


def _random(scaled: tuple[int, int], size: tuple[int, int], seed: str) -> tuple[int, int]:
    number = hashlib.sha256(seed.encode()).digest()
    x, y = (int.from_bytes(each, "big") / 2**64 for each in (number[:8], number[8:16]))
    return int(x * (scaled[0] - size[0] + 1)), int(y * (scaled[1] - size[1] + 1))
