"""Images from callers as pixels: checked before they are decoded, mended where their pixels are whole, else named."""

import io
import zlib
from dataclasses import dataclass, replace
from functools import partial

from PIL import ExifTags, Image, ImageChops, ImageOps

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.media.avif import read_avif
from worker.media.kinds import IMAGES, WEB_PAGE, kind_of

MAX_BYTES = 20 * 2**20
MAX_SIDE = 8_192
MAX_PIXELS = 16_777_216
MAX_ASPECT = 20
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_TAKEN = f"{', '.join(IMAGES[:-1])} or {IMAGES[-1]}"
_SEND = "send it as PNG, JPEG or WebP"
_MAX_RLE_PIXELS = 2**20  # Pillow reads a compressed BMP pixel by pixel in Python
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END_OF_JPEG = b"\xff\xd9"
_OTHER_PIXELS = b"\xa5\x3c\x5a\x99" * 1_024  # in place of a JPEG's lost end: no byte is a marker
_LOST_SHARE = 0.02  # of a JPEG's pixels that may be lost with its end
_STRIP = 256  # rows
_SEEN = 8  # of 255: less is rounding


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image's upright pixels, the orientation that its file had, and notes on parts that were not taken."""

    raster: Raster
    notes: tuple[str, ...] = ()
    orientation: int = 1


def decode_image(data: bytes, field: str = "image", *, alpha: bool = False) -> DecodedImage:
    """Decode an image of a format in `kinds.IMAGES` as RGB pixels: first frame, upright by its EXIF, no metadata.

    Transparent parts become white, unless `alpha` is kept. Raises InvalidImage naming `field`.
    """
    if not data:
        raise InvalidImage(f"{field} is empty; send the bytes of an image.", field=field)
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"{field} is over {MAX_BYTES >> 20} MB; send a smaller image.", field=field)
    kind = kind_of(data)
    try:
        image = _read(data, kind, field)
        return DecodedImage(_to_raster(image.pixels, alpha), image.notes, image.orientation)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(f"{field} has more than {MAX_PIXELS} pixels; send a smaller image.", field=field) from None
    except Exception:  # decoders raise anything on hostile bytes: struct.error, KeyError, MemoryError …
        raise InvalidImage(f"{field} is {_fault(kind)}", field=field) from None


def as_sent(raster: Raster, field: str, *, alpha: bool = False) -> Raster:
    """Return what decoding a PNG of `raster` would, without making one. Raises InvalidImage naming `field`."""
    _check_size(field, raster.width, raster.height)
    if raster.mode == "RGB" or (raster.mode == "RGBA" and alpha):
        return raster
    return _to_raster(Image.frombytes(raster.mode, (raster.width, raster.height), raster.data), alpha)


def pixels_in(data: bytes) -> int:
    """Return how many pixels decoding these bytes as an image may take, by their header; the most if it does not say.

    0 if they are refused unread.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
    except Exception:  # an AVIF, or damaged: it may be mended
        return MAX_PIXELS if kind_of(data) in IMAGES else 0
    return pixels if pixels <= MAX_PIXELS else 0


@dataclass(frozen=True, slots=True)
class _Read:
    """The first frame of a file, as Pillow has it."""

    pixels: Image.Image
    notes: tuple[str, ...] = ()
    orientation: int = 1


def opaque(image: Image.Image) -> Image.Image:
    """Return `image` on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def showing_gaps(data: bytes) -> bytes:
    """Return an animated WebP that says it has transparency: what no frame covers is, and Pillow would call it black.

    Any other file comes back as it is.
    """
    is_animated = data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) > 20 and data[20] & 2
    return data[:20] + bytes([data[20] | 16]) + data[21:] if is_animated else data


def _read(data: bytes, kind: str | None, field: str) -> _Read:
    """Return the first frame. Raises anything for what cannot be read."""
    if kind == "AVIF":
        image, is_animated = read_avif(data, partial(_check_size, field), MAX_SIDE, MAX_PIXELS)
        return _Read(image, (f"{field} is animated; its first frame was read.",) if is_animated else ())
    try:
        return _read_with_pillow(data, field)
    except (InvalidImage, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if kind == "PNG":
            return _read_with_pillow(_without_notes(data), field)
        if kind == "JPEG" and _is_nearly_whole(data, field):
            read = _read_with_pillow(data + _END_OF_JPEG, field)
            return replace(read, notes=(*read.notes, f"{field} is a JPEG without its end; what is there was read."))
        raise


def _read_with_pillow(data: bytes, field: str) -> _Read:
    with Image.open(io.BytesIO(showing_gaps(data)), formats=_FORMATS) as image:
        _check_size(field, image.width, image.height)  # known from the header, before any pixel is decoded
        if image.tile and image.tile[0][0] == "bmp_rle" and image.width * image.height > _MAX_RLE_PIXELS:
            raise InvalidImage(f"{field} is a compressed BMP of over a megapixel; {_SEND}.", field=field)
        turned = _orientation(image) if image.format == "TIFF" else 1  # which loading turns and forgets
        image.load()
        notes: tuple[str, ...] = ()
        if image.format != "MPO" and getattr(image, "is_animated", False):  # a phone's JPEG holds a depth map too
            several, one = ("has several pages", "page") if image.format == "TIFF" else ("is animated", "frame")
            notes = (f"{field} {several}; its first {one} was read.",)
        return _Read(_upright(image), notes, _orientation(image) if turned == 1 else turned)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF
        return 1


def _without_notes(png: bytes) -> bytes:
    """Return a PNG without chunks that are no part of its pixels: a text or profile of megabytes is not read."""
    parts, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        name = png[at + 4 : at + 8]
        # A capital first letter: needed to decode. A checksum in the others may be wrong without harm.
        if name[:1].isupper():
            parts.append(png[at:end])
        elif name in (b"tRNS", b"eXIf"):
            parts.append(png[at : end - 4] + zlib.crc32(png[at + 4 : end - 4]).to_bytes(4, "big"))
        at = end
    return b"".join(parts)


def _is_nearly_whole(jpeg: bytes, field: str) -> bool:
    """True if hardly a pixel of a JPEG that breaks off depends on what is missing: the rest decodes alike whatever
    follows.
    """
    pixels = jpeg.rstrip(b"\xff")  # half a marker
    one, other = (_half_sized(pixels + end + _END_OF_JPEG, field) for end in (b"", _OTHER_PIXELS))
    seen = ImageChops.difference(one, other).convert("L").histogram()[_SEEN:]
    return sum(seen) <= _LOST_SHARE * one.width * one.height


def _half_sized(jpeg: bytes, field: str) -> Image.Image:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        _check_size(field, image.width, image.height)
        image.draft(image.mode, (max(1, image.width // 2), max(1, image.height // 2)))
        return image.copy()


def _fault(kind: str | None) -> str:
    """Return the reason why a file of this kind is not read, with the way out."""
    if kind in IMAGES:
        return f"not a readable {kind}: it is damaged, breaks off, or is of a rare sort; send the whole file, or a PNG."
    if kind == WEB_PAGE:
        return f"{WEB_PAGE}, not an image; send the image itself, or the URL of its file."
    if kind is not None and kind.endswith("text"):
        return f"{kind}, not an image; send the image itself, or the URL of its file."
    if kind is not None:
        return f"{kind}, which is not read here; {_SEND}."
    return f"not a readable {_TAKEN} image; send one of these."


def _check_size(field: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidImage(
            f"{field} is {width}x{height}; at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all are taken.",
            field=field,
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(f"{field} is {width}x{height}; its sides may differ {MAX_ASPECT}-fold at most.", field=field)


def _upright(image: Image.Image) -> Image.Image:
    whole = image.copy() if getattr(image, "is_animated", False) else image  # whose file would be read on
    if _orientation(image) == 1:
        return whole
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are good
        return whole


def _to_raster(image: Image.Image, alpha: bool) -> Raster:
    if image.mode == "F":  # floats, of 0 to 1 or of 0 to 255
        scale = 255 if float(image.getextrema()[1]) <= 1 else 1  # type: ignore[arg-type]  # of one band
        image = image.point(lambda value: value * scale).convert("L")
    elif image.mode.startswith("I"):
        # 16 bits of grey: convert() would cut everything above 255 off to white.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    has_alpha = image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info
    pixels = io.BytesIO()
    # In strips: each whole copy of 16 million pixels would be 67 MB more.
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        strip = strip.convert("RGBA" if has_alpha else "RGB")
        # Models see no alpha: transparent parts become white, as a viewer would show them.
        pixels.write((opaque(strip) if has_alpha and not alpha else strip).tobytes())
    return Raster("RGBA" if has_alpha and alpha else "RGB", image.width, image.height, pixels.getvalue())
