"""Masks from callers, drawn in whichever way, as one channel that is white where the image is redrawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageChops, ImageOps

from worker.core.image import MaskReading, Raster
from worker.media.decoding import decode_image
from worker.media.images import to_pil

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_MOST = 512  # pixels a side that are looked at to tell a way of drawing
_FLAT, _NEARLY = 0.995, 0.98  # the shares that make a mask of one colour, and of few
_SOFT = 0.7  # more of a black and white mask is black or white; the rest are its soft edges
_FEW = 4  # colours of a brush; a picture has more
_DARK, _LIGHT = 32, 223
_LIKE = 12  # the mean difference, of 255, up to which a mask's colours are the image's own
_UNSEEN = 8  # of 255: a redrawn pixel of so little weight is as it was
_HALF = 128  # most pipelines take a mask from here on as white
_SAYS = {
    "painted": "its painted part is redrawn",
    "hole": "its transparent part is redrawn",
    "white": "its white part is redrawn",
}


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks of one channel, the way in which they were read, and notes for their caller.

    `is_empty` is True if nothing is redrawn.
    """

    rasters: tuple[Raster, ...]
    reading: MaskReading
    notes: tuple[str, ...] = ()
    is_empty: bool = False


def read_masks(masks: Sequence[Raster], image: Raster | None, field: str) -> Masks:
    """Read the masks of one field, all as the first of them, which belongs to `image`."""
    reading, notes = _reading_of(masks[0], image, field)
    channels = [_channel(mask, reading) for mask in masks]
    lightest = max(_range(channel)[1] for channel in channels)
    if lightest == 1:
        channels = [channel.point(lambda value: value * 255) for channel in channels]
        notes += (f"{field} has 0 and 1 where 0 and 255 are meant; 1 was read as white.",)
    elif lightest <= _UNSEEN:
        notes += (f"{field} has nothing white: nothing is redrawn, and what was sent comes back.",)
    elif lightest < _HALF:
        notes += (f"{field} has nothing lighter than {lightest} of 255; send 255 where it is to be redrawn.",)
    rasters = tuple(Raster("L", channel.width, channel.height, channel.tobytes()) for channel in channels)
    return Masks(rasters, reading, notes, is_empty=lightest <= _UNSEEN and lightest != 1)


def stretched(mask: Raster, width: int, height: int) -> Raster:
    """Return a mask at this size, edge to edge."""
    resized = to_pil(mask).resize((width, height), Image.Resampling.LANCZOS)
    return replace(mask, width=width, height=height, data=resized.tobytes())


def white_where_transparent(data: bytes, field: str = "mask") -> bytes:
    """Turn a mask that means its transparent part into one that means its white part; keep an opaque one as it is.

    Raises InvalidImage naming `field`.
    """
    mask = decode_image(data, field, alpha=True).raster
    alpha = to_pil(mask).getchannel("A") if mask.mode == "RGBA" else None
    if alpha is None or alpha.getextrema() == (255, 255):  # opaque: its white part is meant
        return data
    out = io.BytesIO()
    ImageOps.invert(alpha).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _channel(mask: Raster, reading: MaskReading) -> Image.Image:
    image = to_pil(mask).convert("RGBA")
    lightness, alpha = image.convert("RGB").convert("L"), image.getchannel("A")
    lowest, highest = _range(alpha)
    if lowest < highest:  # a brush may be translucent
        alpha = alpha.point(lambda value: (value - lowest) * 255 / (highest - lowest))
    elif reading == "white":
        return lightness
    if reading == "white":
        return ImageChops.multiply(lightness, alpha)
    return alpha if reading == "painted" else ImageOps.invert(alpha)


def _reading_of(mask: Raster, image: Raster | None, field: str) -> tuple[MaskReading, tuple[str, ...]]:
    if mask.mode != "RGBA":
        return "white", ()
    lowest, highest = _range(to_pil(mask).getchannel("A"))
    if lowest == highest:
        note = f"{field} is transparent alike everywhere, which says nothing: its white part is redrawn."
        return "white", () if lowest == 255 else (note,)
    reading = _drawn(_pixels(mask), (lowest + highest) / 2, image)
    return reading, (f"{field} has transparency: {_SAYS[reading]}.",)


def _drawn(pixels: Pixels, middle: float, image: Raster | None) -> MaskReading:
    """Return the way in which a mask with transparency was drawn.

    A brush paints in white or in few colours on a transparent ground. An eraser makes a hole in the image itself, in
    another picture or in an opaque ground.
    """
    import numpy as np

    small = _thinned(pixels)
    if not (small[..., 3] > middle).any():  # strokes so thin that none was met
        small = pixels
    solid = small[..., 3] > middle
    colours = small[solid][:, :3]
    light, dark = colours.min(axis=1) >= _LIGHT, colours.max(axis=1) <= _DARK
    if light.mean() >= _FLAT:
        return "painted"
    if image is not None and _is_like(small, solid, image):
        return "hole"
    grey = np.ptp(colours, axis=1) <= _LIKE
    if min(light.mean(), dark.mean(), (light | dark).mean() - _SOFT) >= 1 - _FLAT and grey.mean() >= _NEARLY:
        return "white"
    counts = np.unique(colours >> 5, axis=0, return_counts=True)[1]
    has_few = np.sort(counts)[-_FEW:].sum() >= _NEARLY * counts.sum()
    border = np.concatenate((solid[0], solid[-1], solid[:, 0], solid[:, -1]))
    return "painted" if has_few and border.mean() < 0.5 else "hole"


def _is_like(pixels: Pixels, solid: Any, image: Raster) -> bool:
    """True if the opaque part of a mask is the image itself."""
    import numpy as np

    height, width = solid.shape
    resized = to_pil(image).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    difference = np.asarray(resized).astype(np.int16) - pixels[..., :3]
    return bool(np.abs(difference)[solid].mean() <= _LIKE)


def _range(channel: Image.Image) -> tuple[int, int]:
    return cast("tuple[int, int]", channel.getextrema())


def _pixels(raster: Raster) -> Pixels:
    import numpy as np

    return np.frombuffer(raster.data, np.uint8).reshape(raster.height, raster.width, -1)


def _thinned(pixels: Pixels) -> Pixels:
    step = max(1, max(pixels.shape[:2]) // _MOST)
    return pixels[::step, ::step]
