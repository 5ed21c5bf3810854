"""Images from callers, fetched and decoded; fitted to a size; and encoded for callers."""

import binascii
import io
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

import pybase64
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.core.request import IMAGE_FORMATS, Format
from worker.media.decoding import MAX_BYTES, MAX_PIXELS, DecodedImage, decode_image, opaque
from worker.media.png import encode_png

_DATA_URI = re.compile(r"(?:data:)?[\w.+/;=-]{0,100}?base64,", re.IGNORECASE)
_HEAD_CHARS = 2**16  # of base64, in which most images say their size
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class Comment:
    """A file's note on its origin: `text` for people and other programs, `data` as JSON."""

    text: str
    data: str


def read_image(
    text: str, fetch: Callable[[str, int], bytes], field: str = "image", *, alpha: bool = False
) -> DecodedImage:
    """Read base64, a data: URI or an https URL as RGB pixels; with `alpha` as RGBA if the image has it.

    Raises InvalidImage naming `field`.

    `fetch(url, max_bytes)` is the guarded GET; it is the only way out.
    """
    return decode_image(read_bytes(text, fetch, field, MAX_BYTES), field, alpha=alpha)


def read_bytes(text: str, fetch: Callable[[str, int], bytes], field: str, max_bytes: int) -> bytes:
    """Return the bytes behind base64, a data: URI or an https URL. Raises InvalidImage naming `field`."""
    if not is_url(text):
        return inline_bytes(text, field, max_bytes)
    try:
        return fetch(text.strip(), max_bytes)
    except InvalidImage as error:
        raise InvalidImage(error.message, field=field) from None


def is_url(text: str) -> bool:
    """True if `text` is a link to an image, not the image itself."""
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


def inline_bytes(text: str, field: str, max_bytes: int) -> bytes:
    """Return the bytes behind base64 or a data: URI. Raises InvalidImage naming `field`."""
    text = text.strip()
    if "%" in text:  # as it stands in a link or a form
        text = unquote(text)
    match = _DATA_URI.match(text)
    encoded = text[match.end() :] if match else text
    if len(encoded) > max_bytes * 4 // 3 + 8:
        raise InvalidImage(f"{field} is over {max_bytes >> 20} MB; send a smaller one.", field=field)
    try:
        return _from_base64(encoded)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            f"{field} is neither base64, a data: URI nor an https URL; send one of these.", field=field
        ) from None


def pixels_of_text(text: str) -> int | None:
    """Return how many pixels an image in base64 has, by its beginning; None if that does not say."""
    match = _DATA_URI.match(text)
    start = match.end() if match else 0
    try:
        outline = outline_of(pybase64.b64decode(text[start : start + _HEAD_CHARS], validate=True))
    except ValueError:
        return None
    return None if outline is None or outline[1] * outline[2] > MAX_PIXELS else outline[1] * outline[2]


def _from_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, in one line or several, padded or not. Raises ValueError for anything else."""
    with suppress(ValueError):
        return pybase64.b64decode(text, validate=True)  # as most of it comes; what follows reads all of it again
    joined = "".join(text.split())
    if "-" in joined or "_" in joined:
        joined = joined.translate(_URL_SAFE)
    if len(joined) % 4 and not joined.endswith("="):
        joined += "=" * (-len(joined) % 4)
    return pybase64.b64decode(joined, validate=True)


def fit(raster: Raster, width: int, height: int) -> Raster:
    """Return `raster` at exactly `width` x `height`: scaled to cover, then cropped at the centre."""
    if (raster.width, raster.height) == (width, height):
        return raster
    fitted = ImageOps.fit(to_pil(raster), (width, height), Image.Resampling.LANCZOS)
    return Raster(raster.mode, width, height, fitted.tobytes())


def beside(left: Raster, right: Raster, gap: int = 8) -> Raster:
    """Return two images side by side on white, `gap` pixels apart."""
    width, height = left.width + gap + right.width, max(left.height, right.height)
    both = Image.new("RGB", (width, height), "white")
    both.paste(to_pil(left), (0, 0))
    both.paste(to_pil(right), (left.width + gap, 0))
    return Raster("RGB", width, height, both.tobytes())


def encode(raster: Raster, format_: Format, quality: int, comment: Comment | None = None) -> bytes:
    """Encode pixels as PNG, JPEG or WebP. `quality` (1..100) is for the last two, which have `comment` in their EXIF.

    JPEG has no alpha: transparent parts become white.
    """
    if format_ == "png":
        return encode_png(raster, _notes(comment))
    image = to_pil(raster)
    out = io.BytesIO()
    if format_ == "webp":
        image.save(out, "WEBP", quality=quality, method=2, **exif_of(comment))
    else:
        opaque(image).save(out, "JPEG", quality=quality, **exif_of(comment))
    return out.getvalue()


def outline_of(data: bytes) -> tuple[Format, int, int] | None:
    """Return format, width and height of a PNG, JPEG or WebP, by its header; None for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper() for name in IMAGE_FORMATS]) as image:
            named = next((name for name in IMAGE_FORMATS if name.upper() == image.format), None)
            return None if named is None else (named, image.width, image.height)
    except Exception:  # decoders raise anything on hostile bytes
        return None


def _notes(comment: Comment | None) -> PngInfo:
    """Return the comment as text chunks: tEXt where Latin-1 will do, which every tool reads, else iTXt."""
    notes = PngInfo()
    if comment:
        notes.add_text("parameters", comment.text)
        notes.add_text("generation", comment.data)
    return notes


def exif_of(comment: Comment | None) -> dict[str, Image.Exif]:
    """Return the comment as EXIF's UserComment, in UTF-16 as its standard wants, and as its ImageDescription."""
    if comment is None:
        return {}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = comment.data
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.text.encode("utf-16-be")
    return {"exif": exif}


def to_base64(data: bytes) -> str:
    """Return raw base64, without a data: prefix."""
    return pybase64.b64encode_as_string(data)


def to_pil(raster: Raster) -> Image.Image:
    """Return `raster` as an image of Pillow."""
    return Image.frombytes(raster.mode, (raster.width, raster.height), raster.data)
