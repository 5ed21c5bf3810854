"""An image and its mask before they are drawn from, as other programs prepare them: PNG out, whatever came in."""

import io

from PIL import Image, ImageChops, ImageFilter, ImageOps

from worker.media.decoding import decode_image
from worker.media.images import to_pil

_HALF = 128
_WITH_TEXTS = ("PNG", "JPEG", "WEBP", "GIF")
_SPREADS = (64, 32, 16, 8, 4, 2, 1)  # radii in pixels, the widest first: near ones lie over them


def plain_mask(
    data: bytes, field: str, *, is_inverted: bool = False, blur: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    """Return a mask of one channel, white where the image is redrawn.

    `blur` has the standard deviations along x and y, in pixels.

    Of a mask with transparency the opaque part is meant. Raises InvalidImage naming `field`.
    """
    mask = to_pil(decode_image(data, field, alpha=True).raster)
    if mask.mode == "RGBA" and mask.getchannel("A").getextrema() != (255, 255):
        channel = mask.getchannel("A").point(lambda value: 255 if value >= _HALF else 0)
    else:
        channel = mask.convert("L")
    if is_inverted:
        channel = ImageOps.invert(channel)
    return channel.filter(ImageFilter.GaussianBlur(blur)) if any(blur) else channel


def plain_image(data: bytes, field: str) -> Image.Image:
    """Return an image in RGB, upright. Raises InvalidImage naming `field`."""
    return to_pil(decode_image(data, field).raster)


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return `image` with the colours around its masked part in place of that part.

    The colours come from blurs of what is kept: the nearer a kept pixel, the more it counts.
    """
    redrawn = mask.resize(image.size).point(lambda value: 255 if value >= _HALF else 0)
    kept = ImageOps.invert(redrawn)
    if kept.getextrema() == (0, 0):  # nothing is kept that could be spread
        return image
    premultiplied = Image.composite(image, Image.new("RGB", image.size), kept).convert("RGBA")
    premultiplied.putalpha(kept)
    spread = image.copy()
    for radius in _SPREADS:
        blurred = premultiplied.convert("RGBa").filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        known = ImageChops.multiply(blurred.getchannel("A").point(lambda value: min(255, value * 8)), redrawn)
        spread.paste(blurred.convert("RGB"), mask=known)
    return spread


def stretched(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return `image` at this size, edge to edge."""
    return image.resize((width, height), Image.Resampling.LANCZOS)


def padded(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return `image` whole inside this size, over its own edges drawn out to the borders."""
    inside = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
    left, top = (width - inside.width) // 2, (height - inside.height) // 2
    ground = Image.new(image.mode, (width, height))
    if inside.width < width:
        ground.paste(inside.crop((0, 0, 1, height)).resize((width, height)))
        ground.paste(inside.crop((inside.width - 1, 0, inside.width, height)).resize((width, height)), (left, 0))
    elif inside.height < height:
        ground.paste(inside.crop((0, 0, width, 1)).resize((width, height)))
        ground.paste(inside.crop((0, inside.height - 1, width, inside.height)).resize((width, height)), (0, top))
    ground.paste(inside, (left, top))
    return ground


def to_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def text_in(data: bytes, field: str) -> dict[str, str]:
    """Return the texts that a file carries, by their names. Raises InvalidImage naming `field`."""
    decode_image(data, field)  # within the limits of images, and not damaged
    with Image.open(io.BytesIO(data), formats=_WITH_TEXTS) as image:
        found = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
        comment = image.getexif().get_ifd(0x8769).get(0x9286)  # EXIF's UserComment
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        found.setdefault("parameters", comment[8:].decode("utf-16-be", "replace"))
    return found
