"""THE TABLE of bounds: how far from the plain image a lever of each tier may be, and how much faster it has to be."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from worker.core.image import Raster
from worker.core.quality import Quality

# The least peak signal-to-noise ratio of the worst image, in decibels. Rounding in another order keeps above 40 in half
# precision over a whole schedule; published caches with small differences have 34, those that are plainly visible 23.
LEAST_PSNR_DB: Mapping[Quality, float] = {"exact": 40.0, "high": 30.0, "fast": 22.0}
# A call has to take at most this part of the time without the lever. Less of a gain is not told from noise.
MOST_TIME = 0.98


def psnr_db(images: Sequence[Raster], plain: Sequence[Raster]) -> float:
    """Return the peak signal-to-noise ratio of the worst image against its plain one, in dB; inf when all are equal.

    Images of other numbers, sizes or modes are no match at all: 0 dB.
    """
    if len(images) != len(plain) or not images:
        return 0.0
    return min(map(_psnr, images, plain))


def _psnr(image: Raster, plain: Raster) -> float:
    if (image.width, image.height, image.mode) != (plain.width, plain.height, plain.mode):
        return 0.0
    if image.data == plain.data:
        return math.inf
    difference = np.frombuffer(image.data, np.uint8).astype(np.float64) - np.frombuffer(plain.data, np.uint8)
    return 10 * math.log10(255**2 / float(np.mean(difference**2)))
