"""An image as plain bytes, so that packages without PIL or numpy can pass it on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

# The part of a mask that is redrawn: its white part, what is painted on a transparent ground, or its transparent part.
MaskReading = Literal["white", "painted", "hole"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Raster:
    """Pixels in row order, 8 bits a channel: `len(data) == width * height * len(mode)`."""

    mode: Literal["L", "RGB", "RGBA"]
    width: int
    height: int
    data: bytes = field(repr=False)


class KeptRaster(Raster):
    """A large image that waits: its pixels are made anew whenever they are asked for, out of what takes less room.

    `digest` stands for the pixels: equal for images of equal pixels and equal origin.
    """

    __slots__ = ("_digest", "_restore")
    _restore: Callable[[], bytes]
    _digest: Callable[[], str]

    def __init__(self, like: Raster, restore: Callable[[], bytes], digest: Callable[[], str]) -> None:
        for name in ("mode", "width", "height"):
            object.__setattr__(self, name, getattr(like, name))
        object.__setattr__(self, "_restore", restore)
        object.__setattr__(self, "_digest", cache(digest))

    @property
    def digest(self) -> str:
        """What stands for the pixels, made once somebody compares them."""
        return self._digest()

    @property
    def data(self) -> bytes:
        """The pixels, as of any other image; nobody should ask twice."""
        return self._restore()
