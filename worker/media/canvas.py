"""An image on a larger canvas, and the mask of the part that is still to be generated."""

from dataclasses import dataclass

from worker.core.image import Raster
from worker.core.request import Margins


@dataclass(frozen=True, slots=True)
class Canvas:
    """An image with room around it, and a mask that is white in the room."""

    image: Raster
    mask: Raster


def enlarge(raster: Raster, margins: Margins, multiple: int) -> Canvas:
    """Return `raster` with `margins` around it, which grow until both sides are multiples of `multiple` if they can.

    Its border is stretched into the room: models that look through the mask see colours that go on, and no edge.
    """
    left_margin, right_margin = _grown(margins.left, margins.right, raster.width, multiple)
    top_margin, bottom_margin = _grown(margins.top, margins.bottom, raster.height, multiple)
    import numpy as np  # where it is used, as in video.py: few requests need it

    pixels = np.frombuffer(raster.data, np.uint8).reshape(raster.height, raster.width, -1)
    room = ((top_margin, bottom_margin), (left_margin, right_margin))
    image = np.pad(pixels, (*room, (0, 0)), mode="edge")
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), room, constant_values=255)
    height, width = mask.shape
    return Canvas(Raster(raster.mode, width, height, image.tobytes()), Raster("L", width, height, mask.tobytes()))


def _grown(before: int, after: int, side: int, multiple: int) -> tuple[int, int]:
    """Return both margins, the larger one grown until the whole side is a multiple; without margins the side stays."""
    missing = -(before + side + after) % multiple if before + after else 0
    return (before + missing, after) if before > after else (before, after + missing)
