"""An image as plain bytes, so that packages without PIL or numpy can pass it on."""

from dataclasses import dataclass
from typing import Literal

# The part of a mask that is redrawn: its white part, what is painted on a transparent ground, or its transparent part.
MaskReading = Literal["white", "painted", "hole"]


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels in row order, 8 bits a channel: `len(data) == width * height * len(mode)`."""

    mode: Literal["L", "RGB", "RGBA"]
    width: int
    height: int
    data: bytes
