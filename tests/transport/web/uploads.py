"""Requests and images that callers send, and pixels that do not compress. No torch."""

import io
import random

from PIL import Image, ImageDraw

from worker.core.image import Raster
from worker.service.limits.api_keys import Caller

ADMITTED = {"type": "http", "method": "POST", "headers": [], "state": {"caller": Caller()}}
"""The ASGI scope of a request that was let in."""


def png(width, height, colour="red", mode="RGB"):
    """Return an image of one colour, as a PNG file."""
    return _file(Image.new(mode, (width, height), colour))


def mask(width, height):
    """Return a mask as OpenAI's clients send it: opaque, and transparent in its left half."""
    image = Image.new("RGBA", (width, height), "black")
    ImageDraw.Draw(image).rectangle((0, 0, width // 2 - 1, height), fill=(0, 0, 0, 0))
    return _file(image)


def noise(width, height):
    """Return pixels of which no format makes much less."""
    return Raster("RGB", width, height, random.Random(1).randbytes(width * height * 3))


def _file(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
