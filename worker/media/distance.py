"""How far two images are apart, as one number."""

from worker.core.image import Raster
from worker.media.images import fit


def distance(image: Raster, other: Raster) -> float:
    """Return the root of the mean squared difference of two images: 0 for equal ones, 1 for black against white.

    It is of RGB values from 0 to 1. An image of another size is scaled and cropped to the first one's before.
    """
    import numpy as np

    pixels = [
        np.frombuffer(raster.data, np.uint8).astype(np.float64) / 255
        for raster in (_rgb(image), fit(_rgb(other), image.width, image.height))
    ]
    return float(np.sqrt(np.mean((pixels[0] - pixels[1]) ** 2)))


def _rgb(raster: Raster) -> Raster:
    """Return an image's colours alone."""
    import numpy as np

    if raster.mode == "RGB":
        return raster
    pixels = np.frombuffer(raster.data, np.uint8).reshape(-1, len(raster.mode))
    colours = np.repeat(pixels, 3, axis=1) if raster.mode == "L" else pixels[:, :3]
    return Raster("RGB", raster.width, raster.height, colours.tobytes())
