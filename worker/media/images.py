"""Images from callers, checked before they are decoded; images to callers, encoded."""

import binascii
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import pybase64
from PIL import ExifTags, Image, ImageOps

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.core.request import Format

MAX_BYTES = 20 * 2**20
MAX_SIDE = 8_192
MAX_PIXELS = 16_777_216
MAX_ASPECT = 20
_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URI = re.compile(r"data:[\w.+/;=-]{0,100};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Comment:
    """A file's note on its origin: `text` for people and other programs, `data` as JSON."""

    text: str
    data: str


def read_image(text: str, fetch: Callable[[str, int], bytes], field: str = "image", *, alpha: bool = False) -> Raster:
    """Read base64, a data: URI or an https URL as RGB pixels; with `alpha` as RGBA if the image has it.

    Raises InvalidImage naming `field`.

    `fetch(url, max_bytes)` is the guarded GET; it is the only way out.
    """
    return decode_image(read_bytes(text, fetch, field, MAX_BYTES), field, alpha=alpha)


def read_bytes(text: str, fetch: Callable[[str, int], bytes], field: str, max_bytes: int) -> bytes:
    """Return the bytes behind base64, a data: URI or an https URL. Raises InvalidImage naming `field`."""
    text = text.strip()
    if text[:8].lower().startswith(("http://", "https://")):
        try:
            return fetch(text, max_bytes)
        except InvalidImage as error:
            raise InvalidImage(error.message, field=field) from None
    match = _DATA_URI.match(text)
    encoded = text[match.end() :] if match else text
    if len(encoded) > max_bytes * 4 // 3 + 8:
        raise InvalidImage(f"{field} is over {max_bytes >> 20} MB; send a smaller one.", field=field)
    try:
        return pybase64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            f"{field} is neither base64, a data: URI nor an https URL; send one of these.", field=field
        ) from None


def decode_image(data: bytes, field: str = "image", *, alpha: bool = False) -> Raster:
    """Decode PNG, JPEG or WebP bytes as RGB pixels: first frame, EXIF orientation applied, metadata dropped.

    Transparent parts become white, unless `alpha` is kept.
    """
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"{field} is over {MAX_BYTES >> 20} MB; send a smaller image.", field=field)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.width, image.height, field)  # known from the header, before any pixel is decoded
            image.load()
            return _to_raster(_upright(image), alpha)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(f"{field} has more than {MAX_PIXELS} pixels; send a smaller image.", field=field) from None
    except Exception:  # decoders raise anything on hostile bytes: struct.error, KeyError, MemoryError …
        raise InvalidImage(f"{field} is not a readable PNG, JPEG or WebP image; send it again.", field=field) from None


def white_where_transparent(data: bytes, field: str = "mask") -> bytes:
    """Turn a mask that means its transparent part into one that means its white part; keep an opaque one as it is.

    Raises InvalidImage naming `field`.
    """
    mask = decode_image(data, field, alpha=True)
    alpha = _to_pil(mask).getchannel("A") if mask.mode == "RGBA" else None
    if alpha is None or alpha.getextrema() == (255, 255):  # opaque: its white part is meant
        return data
    out = io.BytesIO()
    ImageOps.invert(alpha).save(out, "PNG", compress_level=1)
    return out.getvalue()


def fit(raster: Raster, width: int, height: int) -> Raster:
    """Return `raster` at exactly `width` x `height`: scaled to cover, then cropped at the centre."""
    if (raster.width, raster.height) == (width, height):
        return raster
    fitted = ImageOps.fit(_to_pil(raster), (width, height), Image.Resampling.LANCZOS)
    return Raster(raster.mode, width, height, fitted.tobytes())


def to_mask(raster: Raster) -> Raster:
    """Return `raster` as one channel of lightness."""
    return Raster("L", raster.width, raster.height, _to_pil(raster).convert("L").tobytes())


def encode(raster: Raster, format_: Format, quality: int, comment: Comment | None = None) -> bytes:
    """Encode pixels as PNG, JPEG or WebP. `quality` (1..100) is for the last two, which have `comment` in their EXIF.

    JPEG has no alpha: transparent parts become white.
    """
    image = _to_pil(raster)
    out = io.BytesIO()
    if format_ == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        if comment:
            # As tEXt where Latin-1 will do, which every tool reads, else as iTXt.
            info.add_text("parameters", comment.text)
            info.add_text("generation", comment.data)
        # Level 1 with run-length matching: a third of the default's time for 2 % more bytes.
        image.save(out, "PNG", compress_level=1, compress_type=3, pnginfo=info)
    elif format_ == "webp":
        image.save(out, "WEBP", quality=quality, method=2, **exif_of(comment))
    else:
        _opaque(image).save(out, "JPEG", quality=quality, **exif_of(comment))
    return out.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    """Return `image` on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


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


def _check_size(width: int, height: int, field: str) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidImage(
            f"{field} is {width}x{height}; at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all are taken.",
            field=field,
        )
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(f"{field} is {width}x{height}; its sides may differ {MAX_ASPECT}-fold at most.", field=field)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are good
        return image


def _to_raster(image: Image.Image, alpha: bool) -> Raster:
    if image.mode.startswith("I"):
        # 16 bits of grey: convert() would cut everything above 255 off to white.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if alpha:
            return Raster("RGBA", rgba.width, rgba.height, rgba.tobytes())
        # Models see no alpha: transparent parts become white, as a viewer would show them.
        image = _opaque(rgba)
    rgb = image.convert("RGB")
    return Raster("RGB", rgb.width, rgb.height, rgb.tobytes())


def _to_pil(raster: Raster) -> Image.Image:
    return Image.frombytes(raster.mode, (raster.width, raster.height), raster.data)
