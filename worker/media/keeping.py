"""Images of jobs that wait: kept as they were sent, or packed, and decoded again when the job is generated.

Sixteen million pixels are 50 MB, in a file of 39 KB perhaps, and two thousand jobs may wait. So there is room for so
many bytes of pixels of all jobs together; what finds none is packed. Nothing is lost: the same bytes give the same
pixels.
"""

import hashlib
import threading
import weakref
import zlib
from collections.abc import Sequence
from functools import partial

from worker.core.image import KeptRaster, Raster
from worker.media.decoding import MAX_BYTES, decode_image
from worker.media.images import inline_bytes

MAX_PIXELS = 2**21  # of an image that is kept as it is: 6 MB
MAX_FRAMES_PIXELS = 2**24  # of all frames of a video together
ROOM_BYTES = 2**28  # of pixels that wait as they are


class Room:
    """The room for pixels that wait as they are. An image leaves it when nobody has it any more."""

    def __init__(self, size: int = ROOM_BYTES) -> None:
        self.left = size
        self._inside: set[int] = set()
        self._lock = threading.RLock()  # an image may go at any moment, also within these lines

    def take(self, rasters: Sequence[Raster]) -> bool:
        """Give these images room, all of them or none. One that has it already keeps it."""
        with self._lock:
            new = [raster for raster in rasters if id(raster) not in self._inside]
            size = sum(map(_bytes_of, new))
            if size > self.left:
                return False
            self.left -= size
            self._inside.update(map(id, new))
        for raster in new:
            weakref.finalize(raster, self._give_back, id(raster), _bytes_of(raster)).atexit = False
        return True

    def _give_back(self, number: int, size: int) -> None:
        with self._lock:
            self._inside.discard(number)
            self.left += size


def kept(raster: Raster, source: str | bytes | None, room: Room, *, alpha: bool = False) -> Raster:
    """Return `raster`, or what takes less room in its place if it is large, or there is none.

    `source` is the file that it was decoded from, or its base64; None if it is not what is in any file.
    """
    if isinstance(raster, KeptRaster) or (raster.width * raster.height <= MAX_PIXELS and room.take([raster])):
        return raster
    if source is None:
        return _packed(raster)
    return from_source(raster, source, alpha=alpha)


def from_source(like: Raster, source: str | bytes, *, alpha: bool = False) -> KeptRaster:
    """Return the image of a file, or of its base64, without its pixels: `like` has its mode and size."""

    def digest() -> str:
        data = source.encode() if isinstance(source, str) else source
        return f"{hashlib.sha256(data).hexdigest()} {alpha}"

    return KeptRaster(like, partial(_decoded, source, alpha), digest)


def kept_frames(frames: Sequence[Raster], room: Room) -> tuple[Raster, ...]:
    """Return images, the frames of a video or a single one, packed if they are many or large, or there is no room."""
    plain = {id(frame): frame for frame in frames if not isinstance(frame, KeptRaster)}  # the last may come often
    pixels = sum(frame.width * frame.height for frame in plain.values())
    if pixels <= MAX_FRAMES_PIXELS and room.take([*plain.values()]):
        return tuple(frames)
    packed = {number: _packed(frame) for number, frame in plain.items()}
    return tuple(packed.get(id(frame), frame) for frame in frames)


def _bytes_of(raster: Raster) -> int:
    return raster.width * raster.height * len(raster.mode)


def _packed(raster: Raster) -> Raster:
    data = zlib.compress(raster.data, 1)
    return KeptRaster(raster, partial(zlib.decompress, data), hashlib.sha256(data).hexdigest)


def _decoded(source: str | bytes, alpha: bool) -> bytes:
    data = inline_bytes(source, "image", MAX_BYTES) if isinstance(source, str) else source
    return decode_image(data, alpha=alpha).raster.data
