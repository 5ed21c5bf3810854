"""Masks of images: white is what shall be learnt. Which file is whose mask, and its pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageOps

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.media.decoding import decode_image
from worker.media.images import to_pil
from worker.training.siblings import Siblings

MASKS = Siblings(".mask", "masks")
_SHAPE = 0.02  # share by which the shapes of a mask and its image may differ
_SEEN = 8  # of 255: less is black


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of an image; `read` returns its pixels in grey."""

    digest: str
    read: Callable[[], Raster]


def mask_of(name: str, read: Callable[[], bytes], image: Raster) -> Mask:
    """Return the mask in a file for `image`. Raises InvalidImage, with the reason, where it is none for it."""
    data = read()
    raster = _grey(data, name)
    one, other = raster.width / raster.height, image.width / image.height
    if abs(one / other - 1) > _SHAPE:
        raise InvalidImage(f"it is {raster.width}x{raster.height}, and its image {image.width}x{image.height}")
    return _checked(Mask(hashlib.sha256(data).hexdigest(), lambda: _grey(read(), name)), raster)


def alpha_of(name: str, read: Callable[[], bytes]) -> Mask | None:
    """Return how opaque the pixels of an image are, where they are not all. Raises InvalidImage for none that is."""
    data = read()
    raster = _alpha(data, name)
    if raster is None or min(raster.data) == 255:
        return None
    digest = hashlib.sha256(raster.data).hexdigest()
    return _checked(Mask(digest, lambda: _alpha(read(), name) or raster), raster)


def mirrored(mask: Mask) -> Mask:
    """Return the mask seen in a mirror."""

    def read() -> Raster:
        image = ImageOps.mirror(to_pil(mask.read()))
        return Raster("L", image.width, image.height, image.tobytes())

    return Mask(f"{mask.digest}-mirrored", read)


def told(used: int, images: int) -> list[str]:
    """Return a sentence on images without a mask, where others have one."""
    without = images - used
    return [f"{without} images have no mask and are learnt whole; {used} have one."] if used and without else []


def _checked(mask: Mask, raster: Raster) -> Mask:
    if max(raster.data) < _SEEN:
        raise InvalidImage("it covers nothing")
    return mask


def _grey(data: bytes, name: str) -> Raster:
    image = to_pil(decode_image(data, name).raster).convert("L")
    return Raster("L", image.width, image.height, image.tobytes())


def _alpha(data: bytes, name: str) -> Raster | None:
    raster = decode_image(data, name, alpha=True).raster
    if raster.mode != "RGBA":
        return None
    image: Image.Image = to_pil(raster).getchannel("A")
    return Raster("L", image.width, image.height, image.tobytes())
