"""Proof that a PNG is whole, without its pixels: a server that generates nothing has no other use for them.

Only PNGs that are plain are proved, as cameras of phones and programs write them: one image of 8 bits a channel in grey
or RGB, opaque, upright, in the order of its rows. Of all others None is said, and they are decoded.
"""

from collections.abc import Iterable
from itertools import pairwise

from isal import igzip_lib, isal_zlib

from worker.media.decoding import MAX_ASPECT, MAX_PIXELS, MAX_SIDE

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # by the colour type of the header: grey, RGB
_ASIDE = frozenset({b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"tIME", b"tEXt"})  # which change no pixel
_MOST_TEXT = 65_536  # bytes of chunks that are read past; Pillow refuses a megabyte
_FILTERS = 4  # the last kind that there is


def plain_png_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of a plain PNG that is whole: each checksum right, each row there; else None."""
    chunks = _chunks(data)
    if chunks is None or (header := _header(*chunks[0])) is None:
        return None
    width, height, channels = header
    packed = [part for kind, part in chunks if kind == b"IDAT"]
    is_whole = _is_plain(chunks) and _has_rows(packed, 1 + width * channels, height)
    return (width, height) if is_whole else None


def _chunks(data: bytes) -> list[tuple[bytes, memoryview]] | None:
    """Return the chunks, each with its kind; None if one is cut off or has a wrong checksum, or something follows."""
    if not data.startswith(_SIGNATURE):
        return None
    chunks, at, view = [], len(_SIGNATURE), memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if isal_zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return None
        chunks.append((bytes(view[at + 4 : at + 8]), view[at + 8 : end]))
        at = end + 4
    return chunks if at == len(data) and len(chunks) > 2 else None


def _is_plain(chunks: list[tuple[bytes, memoryview]]) -> bool:
    """True if the rows are in one place, up to the end, and nothing beside them may mean another image."""
    kinds, (last, rest) = [kind for kind, _ in chunks[1:-1]], chunks[-1]
    beside = [True, *(kind != b"IDAT" for kind in kinds), True]
    borders = sum(before != after for before, after in pairwise(beside))
    text = sum(len(part) for kind, part in chunks if kind in _ASIDE)
    in_order = borders == 2 and last == b"IEND" and not rest
    return in_order and text <= _MOST_TEXT and {*kinds} <= _ASIDE | {b"IDAT"}


def _header(kind: bytes, part: memoryview) -> tuple[int, int, int] | None:
    """Return width, height and channels of a plain image within the bounds; None for others."""
    if kind != b"IHDR" or len(part) != 13 or part[8] != 8 or part[9] not in _CHANNELS or any(part[10:]):
        return None
    width, height = int.from_bytes(part[:4], "big"), int.from_bytes(part[4:8], "big")
    if not 1 <= max(width, height) <= min(MAX_SIDE, MAX_ASPECT * min(width, height)) or width * height > MAX_PIXELS:
        return None
    return width, height, _CHANNELS[part[9]]


def _has_rows(packed: Iterable[memoryview], stride: int, count: int) -> bool:
    """True if so many rows of so many bytes were packed and nothing else, each with a filter that there is."""
    inflating, left = isal_zlib.decompressobj(), stride * count
    try:
        for part in packed:
            rows = inflating.decompress(part, left + 1)
            if len(rows) > left or max(rows[left % stride :: stride], default=0) > _FILTERS:
                return False
            left -= len(rows)
    except igzip_lib.IsalError:  # type: ignore[misc]  # whose stub calls it an instance
        return False
    return not left and inflating.eof and not inflating.unused_data
