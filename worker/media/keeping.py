"""Large images of jobs that wait: kept as they were sent, or packed, and decoded again when the job is generated.

Sixteen million pixels are 50 MB, in a file of 39 KB perhaps. Nothing is lost: the same bytes give the same pixels.
"""

import hashlib
import zlib
from collections.abc import Sequence
from functools import partial

from worker.core.image import KeptRaster, Raster
from worker.media.decoding import MAX_BYTES, decode_image
from worker.media.images import inline_bytes

MAX_PIXELS = 2**21  # of an image that is kept as it is: 6 MB
MAX_FRAMES_PIXELS = 2**24  # of all frames of a video together


def kept(raster: Raster, source: str | bytes | None, *, alpha: bool = False) -> Raster:
    """Return `raster`, or what takes less room in its place if it is large.

    `source` is the file that it was decoded from, or its base64; None if it is not what is in any file.
    """
    if raster.width * raster.height <= MAX_PIXELS or isinstance(raster, KeptRaster):
        return raster
    if source is None:
        return _packed(raster)
    data = source.encode() if isinstance(source, str) else source
    digest = f"{hashlib.sha256(data).hexdigest()} {alpha}"
    return KeptRaster(raster, partial(_decoded, source, alpha), digest)


def kept_frames(frames: Sequence[Raster]) -> tuple[Raster, ...]:
    """Return the frames of a video, packed if they are many or large."""
    plain = {id(frame): frame for frame in frames if not isinstance(frame, KeptRaster)}  # the last may come often
    if sum(frame.width * frame.height for frame in plain.values()) <= MAX_FRAMES_PIXELS:
        return tuple(frames)
    packed = {number: _packed(frame) for number, frame in plain.items()}
    return tuple(packed.get(id(frame), frame) for frame in frames)


def _packed(raster: Raster) -> Raster:
    data = zlib.compress(raster.data, 1)
    return KeptRaster(raster, partial(zlib.decompress, data), hashlib.sha256(data).hexdigest())


def _decoded(source: str | bytes, alpha: bool) -> bytes:
    data = inline_bytes(source, "image", MAX_BYTES) if isinstance(source, str) else source
    return decode_image(data, alpha=alpha).raster.data
