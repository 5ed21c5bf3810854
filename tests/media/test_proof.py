"""What proves a PNG whole is right: whatever it takes, decoding takes with the same size, and gives the same pixels."""

import base64
import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.core.image import KeptRaster, Raster
from worker.media.decoding import decode_image
from worker.media.proof import plain_png_size
from worker.service.accepting.media_reader import MediaReader


def picture(mode="RGB", size=(37, 23), **options) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 4), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, "PNG", **options)
    return out.getvalue()


def with_chunk(png: bytes, kind: bytes, part: bytes, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    chunk = len(part).to_bytes(4, "big") + kind + part + zlib.crc32(kind + part).to_bytes(4, "big")
    return png[:at] + chunk + png[at:]


def text() -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", "a red apple")
    return info


@pytest.mark.parametrize(
    "png", [picture(), picture("L"), picture(compress_level=0), picture(pnginfo=text()), picture(dpi=(72, 72))]
)
def test_a_plain_one_is_proved_with_its_size(png):
    assert plain_png_size(png) == (37, 23)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x89PNG\r\n\x1a\n", b"GIF89a",
        picture("RGBA"), picture("P"), picture("1"), picture("LA"), picture("I;16"),
        picture(transparency=(1, 2, 3)), picture(size=(8_200, 2)), picture(size=(100, 2)), picture(exif=b"Exif\0\0x"),
        picture() + b"x", picture()[:-1], picture()[:-12], picture()[:200],
        with_chunk(picture(), b"tEXt", b"a" * 70_000), with_chunk(picture(), b"acTL", b"\0\0\0\1\0\0\0\0"),
        with_chunk(picture(), b"tRNS", b"\0" * 6), with_chunk(picture(), b"IDAT", b"x"),
        with_chunk(with_chunk(picture(), b"tIME", b"\0" * 7, b"IEND"), b"IDAT", b"", b"IEND"),
    ],
)  # fmt: skip
def test_any_other_is_left_to_be_decoded(data):
    assert plain_png_size(data) is None


def test_what_is_proved_is_decoded_whatever_was_damaged():
    dice, proved = random.Random(0), 0
    plain = [picture(), picture("L"), picture(compress_level=0), picture(dpi=(72, 72)), picture(pnginfo=text())]
    for _ in range(3_000):
        data = bytearray(dice.choice(plain))
        at = dice.randrange(8, len(data))
        data[at] ^= 1 << dice.randrange(8)
        if dice.random() < 0.8:  # its checksums are made right again, as by who means harm
            data = bytearray(mended(bytes(data)))
        if (size := plain_png_size(bytes(data))) is not None:
            raster = decode_image(bytes(data)).raster
            assert (raster.mode, raster.width, raster.height) == ("RGB", *size)
            proved += 1
    assert proved > 10  # a text or a resolution


def mended(png: bytes) -> bytes:
    out, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        out += [png[at:end], zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(out)


def test_where_nothing_is_generated_a_plain_one_has_no_pixels_until_somebody_asks():
    def never(*_):
        raise AssertionError("nothing is fetched here")

    sent = base64.b64encode(picture()).decode()
    checked, read = (MediaReader(never, fits=fits).image(sent, "image") for fits in (False, True))
    assert isinstance(checked, KeptRaster)
    assert type(read) is Raster
    assert (checked.mode, checked.width, checked.height) == (read.mode, read.width, read.height)
    assert checked.data == read.data
    assert not isinstance(MediaReader(never, fits=False).image(sent, "mask_image", alpha=True), KeptRaster)
