"""Images in and out: what is taken becomes the pixels a viewer shows; what is not is refused in one sentence."""

import base64
import io
import random
from urllib.parse import quote

import numpy
import pytest
from PIL import Image, features

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.media import decoding, images
from worker.media.decoding import MAX_BYTES
from worker.media.images import Comment, encode, fit, read_bytes, to_base64

RED, BLUE = (255, 0, 0), (0, 0, 255)


def no_fetch(url: str, max_bytes: int) -> bytes:
    raise AssertionError(f"{url} must not be fetched")


def decode_image(data: bytes, field: str = "image") -> Raster:
    return decoding.decode_image(data, field).raster


def read_image(text: str, fetch, field: str = "image") -> Raster:
    return images.read_image(text, fetch, field).raster


def saved(image: Image.Image, format_: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def array(raster: Raster) -> numpy.ndarray:
    return numpy.frombuffer(raster.data, numpy.uint8).reshape(raster.height, raster.width, len(raster.mode))


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x, y = numpy.meshgrid(numpy.linspace(0, 255, width), numpy.linspace(0, 255, height))
    return Image.fromarray(numpy.stack([x, y, 255 - x], axis=-1).astype(numpy.uint8))


class TestFormats:
    @pytest.mark.parametrize(
        ("format_", "options", "tolerance"),
        [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("WEBP", {"quality": 90}, 20), ("JPEG", {"quality": 95}, 12)],
    )
    def test_png_jpeg_and_webp_become_rgb_pixels(self, format_, options, tolerance):
        raster = decode_image(saved(gradient(), format_, **options))
        assert (raster.mode, raster.width, raster.height) == ("RGB", 60, 40)
        difference = numpy.abs(array(raster).astype(int) - numpy.asarray(gradient()).astype(int))
        assert difference.max() <= tolerance

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
    def test_every_mode_becomes_rgb(self, mode):
        image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
        raster = decode_image(saved(image, "JPEG" if mode == "CMYK" else "PNG"))
        assert raster.mode == "RGB"
        assert (array(raster) == 255).all()

    def test_sixteen_bits_of_grey_keep_their_shades(self):
        ramp = numpy.linspace(0, 65_535, 256 * 16).reshape(16, 256).astype(numpy.uint16)
        shades = array(decode_image(saved(Image.fromarray(ramp), "PNG")))[..., 0]
        assert numpy.abs(shades.astype(int) - ramp // 256).max() <= 1

    def test_a_phone_image_of_several_parts_gives_the_first(self):
        data = saved(
            Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)]
        )
        assert array(decode_image(data))[0, 0] == pytest.approx(RED, abs=3)

    @pytest.mark.parametrize("format_", ["WEBP", "PNG"])
    def test_an_animation_gives_its_first_frame(self, format_):
        frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
        data = saved(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)
        assert tuple(array(decode_image(data))[0, 0]) == RED

    @pytest.mark.parametrize(
        "data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\n"]
    )
    def test_what_is_no_image_is_refused(self, data):
        with pytest.raises(InvalidImage, match="mask_image") as caught:
            decode_image(data, "mask_image")
        assert caught.value.field == "mask_image"

    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
    def test_half_an_image_is_refused(self, format_, part):
        data = saved(Image.effect_noise((200, 200), 80).convert("RGB"), format_)
        with pytest.raises(InvalidImage, match="not a readable"):
            decode_image(data[: int(len(data) * part)])

    def test_damage_is_refused_or_read_and_nothing_else(self):
        chance = random.Random(7)
        originals = [saved(gradient(), name, exif=_oriented(6)) for name in ("PNG", "JPEG", "WEBP")]
        refused = 0
        for number in range(300):
            data = bytearray(originals[number % 3])
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                raster = decode_image(bytes(data))
                assert len(raster.data) == raster.width * raster.height * 3
            except InvalidImage:
                refused += 1
        assert 20 < refused < 290


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a secret note"
    return exif.tobytes()


class TestMetadata:
    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize(
        ("orientation", "turn"),
        [
            (1, None),
            (2, Image.Transpose.FLIP_LEFT_RIGHT),
            (3, Image.Transpose.ROTATE_180),
            (6, Image.Transpose.ROTATE_270),
            (8, Image.Transpose.ROTATE_90),
        ],
    )
    def test_the_image_stands_as_its_exif_says(self, format_, orientation, turn):
        options = {"quality": 100} | ({"lossless": True} if format_ == "WEBP" else {})
        raster = decode_image(saved(gradient(), format_, exif=_oriented(orientation), **options))
        expected = gradient() if turn is None else gradient().transpose(turn)
        assert (raster.width, raster.height) == expected.size
        assert numpy.abs(array(raster).astype(int) - numpy.asarray(expected)).max() < 12

    def test_damaged_exif_costs_the_orientation_and_not_the_image(self):
        raster = decode_image(saved(gradient(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
        assert (array(raster) == numpy.asarray(gradient())).all()

    @pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
    def test_nothing_but_pixels_goes_from_the_input_to_the_output(self, format_):
        raster = decode_image(
            saved(gradient(), "JPEG", exif=_oriented(6), comment=b"a secret note", icc_profile=b"x" * 128)
        )
        data = encode(raster, format_, 90)
        assert b"secret" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert not {"exif", "comment", "icc_profile", "parameters"} & set(image.info)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_becomes_white(self, mode):
        image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
        image.paste((10, 10, 10, 255), (0, 0, 2, 2))
        raster = decode_image(saved(image.convert(mode), "PNG"))
        assert tuple(array(raster)[0, 3]) == (255, 255, 255)
        assert tuple(array(raster)[0, 0]) == pytest.approx((10, 10, 10), abs=6)

    def test_half_transparent_is_half_way_to_white(self):
        raster = decode_image(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))
        assert array(raster)[0, 0] == pytest.approx((127, 127, 127), abs=1)


class TestText:
    PNG = saved(gradient(), "PNG")

    @pytest.mark.parametrize(
        "wrap",
        [
            "{}",
            "data:image/png;base64,{}",
            "DATA:IMAGE/PNG;BASE64,{}",
            "data:image/jpeg;base64,{}",
            "data:image/svg+xml;base64,{}",
            "data:image/png;charset=utf-8;base64,{}",
            "data:application/octet-stream;base64,{}",
            "data:;base64,{}",
            "data:image/png;base64, {}",
            "image/png;base64,{}",
            "base64,{}",
            "data%3Aimage%2Fpng%3Bbase64%2C{}",
            "\n  {}  \n",
        ],
    )
    def test_base64_and_data_uris_are_read(self, wrap):
        raster = read_image(wrap.format(to_base64(self.PNG)), no_fetch)
        assert (array(raster) == numpy.asarray(gradient())).all()

    @pytest.mark.parametrize("form", [quote, lambda text: quote(text, safe=""), lambda text: text.replace("+", "%2b")])
    @pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
    def test_base64_of_any_alphabet_padded_or_not_and_quoted_or_not(self, alphabet, form):
        paddings = set()
        for comment in range(3):  # of every length, and with every character
            data = self.PNG + bytes(range(256)) + b"x" * comment
            text = alphabet(data).decode()
            paddings.add(text.strip().count("="))
            for sent in (text, text.rstrip("=\n"), form(text), f"data:image/png;base64,{form(text)}"):
                assert read_bytes(sent, no_fetch, "image", MAX_BYTES) == data
        assert paddings == {0, 1, 2}

    def test_lines_of_base64_are_joined(self):
        lines = base64.encodebytes(self.PNG).decode()
        assert "\n" in lines.strip()
        assert read_image(lines.replace("\n", "\r\n"), no_fetch).width == 60

    @pytest.mark.parametrize(
        "text",
        ["", "no base64!", "QUJD=A", "/etc/passwd", "file:///etc/passwd", "ftp://host/x.png", "ü" * 10, "\ud800"],
    )
    def test_other_text_is_refused_and_never_opened(self, text):
        with pytest.raises(InvalidImage) as caught:
            read_image(text, no_fetch, "image")
        assert caught.value.field == "image"

    @pytest.mark.parametrize("url", ["https://host/x.png", " HTTPS://host/x.png", "http://host/x.png"])
    def test_an_url_goes_to_the_guarded_fetch_with_the_size_limit(self, url):
        asked = []

        def fetch(text: str, max_bytes: int) -> bytes:
            asked.append((text, max_bytes))
            return self.PNG

        assert read_image(url, fetch).width == 60
        assert asked == [(url.strip(), MAX_BYTES)]

    def test_too_many_bytes_are_refused_before_they_are_decoded(self):
        for refused in (
            lambda: read_image("A" * (MAX_BYTES * 2), no_fetch),
            lambda: decode_image(b"\0" * (MAX_BYTES + 1)),
        ):
            with pytest.raises(InvalidImage, match="20 MB"):
                refused()


class TestShape:
    @pytest.mark.parametrize(
        ("size", "says"), [((8_193, 1_000), "8192"), ((4_200, 4_200), "16777216"), ((400, 19), "20-fold")]
    )
    def test_a_size_over_the_limits_is_refused_with_the_limit(self, size, says):
        with pytest.raises(InvalidImage, match=says):
            decode_image(saved(Image.new("1", size), "PNG"))

    @pytest.mark.parametrize("size", [(1, 1), (400, 20), (20, 400), (8_192, 410)])
    def test_a_size_at_the_limits_is_taken(self, size):
        raster = decode_image(saved(Image.new("1", size), "PNG"))
        assert (raster.width, raster.height) == size

    @pytest.mark.parametrize("target", [(64, 64), (32, 96), (96, 32), (7, 11), (120, 80)])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
    def test_fit_gives_exactly_the_size_that_was_asked_for(self, target, mode):
        raster = Raster(mode, 60, 40, gradient().convert(mode).tobytes())
        fitted = fit(raster, *target)
        assert (fitted.mode, fitted.width, fitted.height) == (mode, *target)
        assert len(fitted.data) == target[0] * target[1] * len(mode)

    def test_fit_cuts_the_edges_and_keeps_the_middle_in_proportion(self):
        image = Image.new("RGB", (300, 100), BLUE)
        image.paste(RED, (100, 0, 200, 100))
        fitted = array(fit(decode_image(saved(image, "PNG")), 50, 50))
        assert (fitted[:, 5:-5] == RED).all()
        assert (fitted[:, [0, -1], 0] > 200).all(), "no more than a blur at the edges"

    def test_fit_at_the_same_size_changes_nothing(self):
        raster = decode_image(saved(gradient(), "PNG"))
        assert fit(raster, 60, 40) is raster


def photo(width, height):
    """A photo's statistics: soft shapes, and a sensor's noise on them."""
    random = numpy.random.default_rng(5)
    soft = Image.fromarray(random.integers(0, 256, (8, 8, 3), numpy.uint8)).resize((width, height), Image.BICUBIC)
    noisy = numpy.asarray(soft) + random.normal(0, 2, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8))


def drawing(width, height):
    """Flat areas with edges."""
    image = Image.new("RGB", (width, height), "wheat")
    for at in range(0, width, 20):
        image.paste("teal", (at, at // 2, at + 11, height))
    return image


class TestEncode:
    NOISE = decode_image(saved(Image.effect_noise((96, 64), 90).convert("RGB"), "PNG"))

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    def test_a_png_holds_the_very_pixels(self, mode):
        raster = Raster(mode, 60, 40, gradient().convert(mode).tobytes())
        with Image.open(io.BytesIO(encode(raster, "png", 1))) as image:
            assert (image.format, image.mode, image.tobytes()) == ("PNG", mode, raster.data)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    @pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1), (300, 200)])
    @pytest.mark.parametrize("make", [photo, drawing])
    def test_a_png_is_exact_and_no_larger_than_pillows(self, make, mode, width, height):
        image = make(width, height).convert(mode)
        data = encode(Raster(mode, width, height, image.tobytes()), "png", 1, Comment("Füße", "{}"))
        with Image.open(io.BytesIO(data)) as read:
            read.load()
            assert (read.mode, read.size, read.tobytes()) == (mode, (width, height), image.tobytes())
            assert read.text == {"parameters": "Füße", "generation": "{}"}
        assert len(data) <= 1.05 * len(saved(image, "PNG")) + 200

    @pytest.mark.parametrize("format_", ["jpeg", "webp"])
    def test_more_quality_is_more_bytes_and_less_error(self, format_):
        files = [encode(self.NOISE, format_, quality) for quality in (10, 60, 100)]
        errors = [numpy.abs(array(decode_image(data)).astype(int) - array(self.NOISE)).mean() for data in files]
        assert len(files[0]) < len(files[1]) < len(files[2])
        assert errors[0] > errors[1] > errors[2]
        with Image.open(io.BytesIO(files[0])) as image:
            assert image.format == format_.upper()

    @pytest.mark.parametrize("mode", ["L", "RGBA"])
    @pytest.mark.parametrize("format_", ["jpeg", "webp"])
    def test_every_mode_can_be_written_in_every_format(self, mode, format_):
        raster = Raster(mode, 60, 40, gradient().convert(mode).tobytes())
        assert decode_image(encode(raster, format_, 80)).width == 60

    def test_a_comment_goes_into_a_png_whatever_its_letters(self):
        with Image.open(io.BytesIO(encode(self.NOISE, "png", 90, Comment("Füße 猫", "{}")))) as image:
            assert image.text == {"parameters": "Füße 猫", "generation": "{}"}

    def test_base64_is_bare(self):
        assert base64.b64decode(to_base64(b"\x00\xff")) == b"\x00\xff"
        assert to_base64(b"") == ""


def test_this_pillow_reads_webp():
    assert features.check("webp")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("alpha", [False, True])
def test_pixels_that_are_handed_on_are_those_of_their_png(mode, alpha):
    raster = Raster(mode, 40, 30, random.Random(1).randbytes(40 * 30 * len(mode)))
    by_png = decoding.decode_image(encode(raster, "png", 1), "image", alpha=alpha).raster
    assert decoding.as_sent(raster, "image", alpha=alpha) == by_png


def test_pixels_that_no_png_could_be_sent_with_are_not_handed_on():
    with pytest.raises(InvalidImage, match="its sides may differ 20-fold at most"):
        decoding.as_sent(Raster("RGB", 10, 300, bytes(9_000)), "image")
