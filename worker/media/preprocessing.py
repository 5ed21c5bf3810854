"""Control images, made from ordinary images by arithmetic alone: no model, no download.

The operators are OpenCV's, since ControlNets were trained on their results: an edge image of another library has
other edges. Images that need an estimator (depth, pose, normals, segments) are the caller's to make. numpy and OpenCV
are imported where they are used: half a second that a worker's start does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageStat

from worker.core.adapter import Preprocess
from worker.core.image import Raster
from worker.media.images import to_pil

if TYPE_CHECKING:
    from cv2.typing import MatLike

_CANNY_LOW, _CANNY_HIGH = 100, 200  # the thresholds that ControlNet's authors trained with
_TILE = 8  # a tile ControlNet generates the detail that shrinking this much loses
_BLUR_SHARE = 1 / 64  # of the longer side
_LINE_SIGMA = 6.0


def preprocess(image: Raster, how: Preprocess) -> Raster:
    """Return `image` after the operator `how`, of the same size; RGB in and out."""
    import numpy as np

    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    result = PREPROCESSES[how](pixels)
    if result.ndim == 2:
        result = np.repeat(result[..., None], 3, axis=-1)
    return Raster("RGB", image.width, image.height, np.ascontiguousarray(result, np.uint8).tobytes())


def on_contrast(image: Raster) -> tuple[Raster, str]:
    """Return an image with transparency as RGB on black if what is painted is light, else on white; and the colour.

    White lines on white would be lost, as black ones on black.
    """
    rgba = to_pil(image)
    red, green, blue, alpha = rgba.split()
    brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    painted = alpha.point(lambda value: 255 * (value > 127))
    is_light = painted.getbbox() is not None and ImageStat.Stat(brightest, painted).mean[0] > 127
    ground = "black" if is_light else "white"
    laid = Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba).convert("RGB")
    return Raster("RGB", image.width, image.height, laid.tobytes()), ground


def _grey(pixels: MatLike) -> MatLike:
    import cv2

    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _canny(pixels: MatLike) -> MatLike:
    """Return white edges on black, one pixel wide."""
    import cv2

    return cv2.Canny(pixels, _CANNY_LOW, _CANNY_HIGH)


def _lineart(pixels: MatLike) -> MatLike:
    """Return white for pixels darker than their surroundings, a drawing's lines, on black."""
    import cv2
    import numpy as np

    grey = _grey(pixels).astype(np.float32)
    darker = np.clip(cv2.GaussianBlur(grey, (0, 0), _LINE_SIGMA) - grey, 0, 255)
    strongest = float(np.percentile(darker, 99))
    return np.asarray(np.clip(darker * (255 / max(strongest, 16.0)), 0, 255), np.uint8)


def _threshold(pixels: MatLike) -> MatLike:
    """Return black and white, divided at the level that tells the two apart best (Otsu)."""
    import cv2

    return cv2.threshold(_grey(pixels), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]


def _invert(pixels: MatLike) -> MatLike:
    import cv2

    return cv2.bitwise_not(pixels)


def _blur(pixels: MatLike) -> MatLike:
    import cv2

    return cv2.GaussianBlur(pixels, (0, 0), max(1.0, max(pixels.shape[:2]) * _BLUR_SHARE))


def _tile(pixels: MatLike) -> MatLike:
    """Return the image without its detail: shrunk and enlarged again."""
    import cv2

    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (max(1, width // _TILE), max(1, height // _TILE)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


PREPROCESSES: Mapping[Preprocess, Callable[[MatLike], MatLike]] = {
    "canny": _canny,
    "lineart": _lineart,
    "grayscale": _grey,
    "invert": _invert,
    "threshold": _threshold,
    "blur": _blur,
    "tile": _tile,
}
