"""Files from callers: the promised formats are read, those whose pixels are whole are mended, all others are named."""

import base64
import struct
import subprocess
import sys
import zlib

import numpy
import pytest
from PIL import Image, PngImagePlugin, features

from tests.media.test_images import _oriented, gradient, saved
from worker.core.errors import InvalidImage
from worker.media import avif
from worker.media.decoding import DecodedImage, decode_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def array(image: DecodedImage) -> numpy.ndarray:
    raster = image.raster
    return numpy.frombuffer(raster.data, numpy.uint8).reshape(raster.height, raster.width, -1).astype(int)


def difference(image: DecodedImage, other: Image.Image) -> int:
    return int(numpy.abs(array(image) - numpy.asarray(other.convert("RGB")).astype(int)).max())


def several(format_: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    return saved(frames[0], format_, save_all=True, append_images=frames[1:])


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, added: bytes, *, last: bool = False) -> bytes:
    """A PNG with one more chunk: before its pixels, or after them."""
    at = png.rindex(b"IEND") - 4 if last else png.index(b"IDAT") - 4
    return png[:at] + added + png[at:]


@pytest.mark.parametrize(
    ("format_", "options", "tolerance"),
    [
        ("GIF", {}, 20),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
        ("TIFF", {"compression": "jpeg"}, 12),
        ("AVIF", {"quality": 95}, 16),
    ],
)
def test_what_pillow_reads_is_read(format_, options, tolerance):
    image = decode_image(saved(gradient(), format_, **options))
    assert difference(image, gradient()) <= tolerance
    assert (image.notes, image.orientation) == ((), 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_a_tiff_of_any_mode_is_read(mode):
    white = Image.fromarray(numpy.full((8, 8), 65_535 if mode == "I;16" else 1.0, "uint16" if mode == "I;16" else "f"))
    image = white if mode in ("I;16", "F") else Image.new("RGB", (8, 8), "white").convert(mode)
    assert (array(decode_image(saved(image, "TIFF"))) == 255).all()


@pytest.mark.parametrize("format_", ["TIFF", "AVIF"])
def test_these_stand_as_their_exif_says_too(format_):
    options = {"quality": 95} if format_ == "AVIF" else {}
    image = decode_image(saved(gradient(), format_, exif=_oriented(6), **options))
    assert difference(image, gradient().transpose(Image.Transpose.ROTATE_270)) <= 16
    assert image.orientation == (6 if format_ == "TIFF" else 1)  # AVIF's is no mere note


@pytest.mark.parametrize("format_", ["GIF", "AVIF", "PNG"])
def test_transparency_is_white_in_these_too(format_):
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (0, 0, 8, 8))
    decoded = array(decode_image(saved(image, format_)))
    assert decoded[4, 12].min() > 240
    assert decoded[4, 3] == pytest.approx((200, 10, 10), abs=16)


@pytest.mark.parametrize(
    ("format_", "says"),
    [
        ("GIF", "image is animated; its first frame was read."),
        ("WEBP", "image is animated; its first frame was read."),
        ("PNG", "image is animated; its first frame was read."),
        ("AVIF", "image is animated; its first frame was read."),
        ("TIFF", "image has several pages; its first page was read."),
    ],
)
def test_it_is_told_that_only_the_first_frame_was_read(format_, says):
    image = decode_image(several(format_))
    assert array(image)[4, 4] == pytest.approx(RED, abs=16)
    assert image.notes == (says,)


def test_the_depth_map_in_a_phones_jpeg_is_no_second_frame():
    assert decode_image(several("MPO")).notes == ()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "added",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 * 2**20))),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(3 * 2**20))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20))),
        chunk(b"tEXt", b"workflow\0" + b"x" * 3 * 2**20),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(200 * 2**20), 9)),
        chunk(b"tEXt", b"workflow\0x", checksum=7),
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt", "zTXt of 200 MB", "wrong checksum"],
)
def test_a_png_is_read_whatever_its_texts_and_profiles(added, last):
    transparent = Image.new("P", (8, 8))
    for image in (gradient(), transparent):
        png = saved(image, "PNG", **({"transparency": 0} if image is transparent else {}))
        data = with_chunk(png, added, last=last)
        expected = Image.new("RGB", (8, 8), "white") if image is transparent else gradient()
        assert difference(decode_image(data), expected) == 0
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20, "Pillow's own limit stands"


def test_a_png_with_a_long_text_still_stands_as_its_exif_says():
    png = saved(gradient(), "PNG", exif=_oriented(6))
    data = with_chunk(png, chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 * 2**20))))
    assert difference(decode_image(data), gradient().transpose(Image.Transpose.ROTATE_270)) == 0


@pytest.mark.parametrize(("progressive", "lost"), [(False, 1), (False, 2), (False, 6), (True, 1), (True, 2), (True, 3)])
def test_a_jpeg_without_its_end_is_read_and_told(progressive, lost):
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    data = saved(noise, "JPEG", quality=90, progressive=progressive)
    whole, image = decode_image(data), decode_image(data[:-lost])
    changed = numpy.abs(array(whole) - array(image)).max(axis=-1) > 8
    assert changed.mean() < 0.02
    assert image.notes == ("image is a JPEG without its end; what is there was read.",)
    assert decode_image(data + bytes(100)).notes == (), "what follows its end is not read"


@pytest.mark.parametrize(("progressive", "part"), [(False, 0.1), (False, 0.5), (False, 0.9), (True, 0.02), (True, 0.1)])
def test_a_jpeg_of_which_much_is_lost_is_refused(progressive, part):
    noise = numpy.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=numpy.uint8)
    data = saved(Image.fromarray(noise), "JPEG", progressive=progressive)
    with pytest.raises(InvalidImage, match=r"^image is not a readable JPEG: it is damaged, breaks off"):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty; send the bytes of an image."),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read here; send it as PNG, JPEG or WebP."),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC, which"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(64), "not a readable AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "an MP4 video, which"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "an MP4 video, which"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, which"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL, which"),
        (b"%PDF-1.7\n", "a PDF, which"),
        (b"%!PS-Adobe-3.0", "PostScript (EPS), which"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, which"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='9'/>", "SVG, which"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "a web page (HTML), not an image; send the image"),
        (b"\xef\xbb\xbf<html lang='en'>", "a web page (HTML), not an image"),
        (b"<head><title>403</title></head>", "a web page (HTML), not an image"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML text, not an image; send"),
        (b'{"error": "not found"}', "JSON text, not an image"),
        (b"Not Found", "text, not an image"),
        ("Zugriff verweigert – keine Rechte für dieses Bild".encode() * 20, "text, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS, which"),
        (b"PK\3\4" + bytes(64), "a zip archive, which"),
        (b"8BPS\0\1", "a Photoshop document (PSD), which"),
        (b"\x89PNG\r\n\x1a\n", "not a readable PNG"),
        (b"GIF89a", "not a readable GIF"),
        (bytes(range(128, 256)), "not a readable PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF image; send one of these."),
    ],
)
def test_what_is_not_read_is_named(data, says):
    with pytest.raises(InvalidImage) as caught:
        decode_image(data, "mask_image")
    assert caught.value.message.startswith(f"mask_image is {says}")
    assert caught.value.field == "mask_image"


@pytest.mark.parametrize("format_", ["ICO", "PPM", "JPEG2000", "TGA"])
def test_what_pillow_has_beyond_the_promised_formats_is_refused(format_):
    with pytest.raises(InvalidImage, match=r"not read here|not a readable"):
        decode_image(saved(gradient(), format_))


def test_a_large_bmp_of_runs_is_refused():
    """Pillow reads it in Python, byte by byte."""
    side = 1_100
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    offset = 14 + 40 + 256 * 4
    data = b"BM" + struct.pack("<IHHI", offset, 0, 0, offset) + header + bytes(256 * 4) + b"\1\0" * 1_000
    with pytest.raises(InvalidImage, match="compressed BMP of over a megapixel"):
        decode_image(data)


def test_an_avif_is_decoded_within_limits():
    """This one says 64x64 and holds 16,000x16,000 pixels, 768 MB of them."""
    data = zlib.decompress(base64.b85decode(_AVIF_BOMB))
    with pytest.raises(InvalidImage, match="not a readable AVIF"):
        decode_image(data)


@pytest.mark.parametrize("size", [(8_200, 500), (420, 20)])
def test_an_avif_over_the_limits_is_refused_by_its_size(size):
    with pytest.raises(InvalidImage, match=f"image is {size[0]}x{size[1]}"):
        decode_image(saved(Image.new("L", size), "AVIF", speed=10))


def test_avif_is_decoded_without_the_workers_modules_and_secrets():
    assert features.check("avif")
    code = avif._CHILD.read_text()
    assert "worker" not in [
        line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import", "from"))
    ]
    image = saved(Image.new("RGB", (8, 8), RED), "AVIF")
    process = subprocess.run([sys.executable, "-I", str(avif._CHILD), "8", "64"], input=image, capture_output=True)
    assert process.stdout.startswith(b"RGB 8 8 0\n")


# As base85 of zlib.
_AVIF_BOMB = (
    "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKT~IJl#OHMrL"
    "MS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQft#0~8AsWL9K?1eiHEIDiySVws_Hqdi!SaB_Z5QC@OR1<+((2DS#Eka%W6F"
    "3e9rhp{j+HM0OUP0me8ED>Vh;<o=@SO4?x5*8CF2cw@70&0qeMJ1Pg4K{9IV2D3|O7r-X>T6yb4+!dfT07<5nrNrVr^UA!9+wc+*tTo_ge9q"
    "y_5GJQMV<OA?3=AtwsPC%MC-f%T{bLyb9R?W?AgC6SFazD`Jkh)Ri=8viDo5>$IC-%6)P{kShzuGrln;5jO6pDT%sLnUsxISoSY%zzwNh_<A"
    "dAtY!7~tRxD#&aeeXbMcRAxp5{+E{%TFcUcSHYKC0R`pLOhxo|q%NeNAzc;j2r<SH(U5*_IwS6M4Gnm(!cs%d&Uthrh|-<mWzg^zsVnbB?PH"
    "(8ZEOvMkv$$)6!u)X`(+8qHtdxBvXCy-+^T%Sy<>hPinr-|CN>g+K2u-Zm+GpMuxF=c|TKV2#GeXpD@;$Y_j=#>i-ljK;`lj10aQiKd}HHVj"
    "?EX&3Ml07+`R=>"
)
