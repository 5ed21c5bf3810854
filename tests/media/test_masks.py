"""Masks, drawn in every way that people draw them: what is meant becomes white."""

import io

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.images import gradient
from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.media.decoding import MAX_BYTES, decode_image
from worker.media.masks import Masks, read_masks, white_where_transparent

SIZE = (96, 64)
CORNER = (64, 40, 96, 64)  # a part of the image that reaches its border, of a quarter of its width
MIDDLE = (30, 20, 60, 44)
CLEAR, WHITE, BLACK, RED = (0, 0, 0, 0), (255, 255, 255, 255), (0, 0, 0, 255), (220, 30, 30, 255)


def photo() -> Image.Image:
    noise = numpy.random.default_rng(3).integers(0, 60, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((gradient(*SIZE) * 0.7 + noise).astype(numpy.uint8)).convert("RGBA")


def on(ground, paint, where) -> Image.Image:
    image = Image.new("RGBA", SIZE, ground)
    image.paste(paint, where)
    return image


def with_hole(image: Image.Image, where) -> Image.Image:
    image = image.copy()
    image.paste((0, 0, 0, 0), where)
    return image


def read(mask: Image.Image, image: Image.Image | None = None, format_: str = "PNG", **options) -> Masks:
    out = io.BytesIO()
    mask.save(out, format_, **options)
    raster = decode_image(out.getvalue(), "mask_image", alpha=True).raster
    shown = Raster("RGB", *SIZE, (image or photo()).convert("RGB").tobytes())
    return read_masks([raster], shown, "mask_image")


def share(masks: Masks, where) -> tuple[float, float]:
    """How white the mask is within a rectangle and outside of it, each 0 to 1."""
    raster = masks.rasters[0]
    assert raster.mode == "L"
    values = numpy.frombuffer(raster.data, numpy.uint8).reshape(raster.height, raster.width) / 255
    inside = numpy.zeros(values.shape, bool)
    inside[where[1] : where[3], where[0] : where[2]] = True
    return values[inside].mean(), values[~inside].mean()


@pytest.mark.parametrize("where", [CORNER, MIDDLE], ids=["corner", "middle"])
@pytest.mark.parametrize(
    ("draw", "reading"),
    [
        (lambda where: on(BLACK, WHITE, where).convert("L"), "white"),
        (lambda where: on(BLACK, WHITE, where).convert("1"), "white"),
        (lambda where: on(BLACK, WHITE, where).convert("P"), "white"),
        (lambda where: on(BLACK, WHITE, where), "white"),
        (lambda where: on(CLEAR, WHITE, where), "painted"),
        (lambda where: on((255, 255, 255, 0), WHITE, where), "painted"),
        (lambda where: on(CLEAR, WHITE, where).convert("LA"), "painted"),
        (lambda where: on(CLEAR, WHITE, where).quantize(8), "painted"),
        (lambda where: on(CLEAR, RED, where), "painted"),
        (lambda where: on(CLEAR, RED, where).quantize(8), "painted"),
        (lambda where: on(CLEAR, BLACK, where), "painted"),
        (lambda where: on(CLEAR, (220, 30, 30, 128), where), "painted"),
        (lambda where: with_hole(photo(), where), "hole"),
        (lambda where: with_hole(photo().convert("LA").convert("RGBA"), where).convert("LA"), "hole"),
        (lambda where: with_hole(photo().transpose(Image.Transpose.ROTATE_180), where), "hole"),
        (lambda where: with_hole(photo(), where).quantize(64), "hole"),
        (lambda where: with_hole(Image.new("RGBA", SIZE, BLACK), where), "hole"),
        (lambda where: with_hole(Image.new("RGBA", SIZE, RED), where), "hole"),
    ],
)
def test_what_is_meant_is_redrawn(draw, reading, where):
    masks = read(draw(where))
    inside, outside = share(masks, where)
    assert (masks.reading, masks.is_empty) == (reading, False)
    assert inside > 0.95
    assert outside < 0.05


def test_only_transparency_needs_words():
    assert read(on(BLACK, WHITE, MIDDLE)).notes == ()
    assert read(on(CLEAR, RED, MIDDLE)).notes == ("mask_image has transparency: its painted part is redrawn.",)
    assert read(with_hole(photo(), MIDDLE)).notes == ("mask_image has transparency: its transparent part is redrawn.",)


def test_a_colour_that_is_transparent_by_name_is_a_hole_too():
    masks = read(on((9, 9, 9), (255, 0, 255), MIDDLE).convert("RGB"), transparency=(255, 0, 255))
    assert masks.reading == "hole"
    assert share(masks, MIDDLE) == (1, 0)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "TIFF"])
def test_strokes_in_other_formats_are_read_alike(format_):
    masks = read(on(CLEAR, WHITE, MIDDLE), format_=format_, **({"lossless": True} if format_ == "WEBP" else {}))
    assert masks.reading == "painted"
    assert share(masks, MIDDLE) == (1, 0)


def test_a_brush_in_two_colours_paints_and_a_picture_with_a_cut_out_ground_has_a_hole():
    strokes = on(CLEAR, RED, MIDDLE)
    strokes.paste((30, 30, 220, 255), (30, 20, 40, 44))
    assert share(read(strokes), MIDDLE) == (1, 0)
    cut_out = Image.new("RGBA", SIZE)
    cut_out.paste(photo().crop(MIDDLE), MIDDLE)
    masks = read(cut_out)
    assert masks.reading == "hole"
    assert share(masks, MIDDLE) == (0, 1)


def test_a_flat_image_with_a_hole_is_known_by_its_image():
    """A drawing on white paper is nearly one colour, and its ground is opaque or not."""
    drawing = Image.new("RGBA", SIZE, WHITE)
    ImageDraw.Draw(drawing).line((4, 4, 90, 50), fill=BLACK, width=3)
    assert read(with_hole(drawing, CORNER), drawing).reading == "hole"
    assert read(on(CLEAR, WHITE, CORNER), drawing).reading == "painted"


def test_black_and_white_on_a_transparent_ground_means_its_white():
    mask = on(CLEAR, BLACK, (20, 10, 80, 54))
    mask.paste(WHITE, MIDDLE)
    masks = read(mask)
    assert masks.reading == "white"
    assert share(masks, MIDDLE) == (1, 0)
    soft = on(BLACK, WHITE, MIDDLE).convert("L").filter(ImageFilter.GaussianBlur(2)).convert("LA")
    soft.putalpha(on((0, 0, 0), (255, 255, 255), (4, 4, 92, 60)).convert("L"))
    assert read(soft).reading == "white"


def test_soft_edges_stay_soft():
    strokes = on(CLEAR, WHITE, MIDDLE)
    strokes.putalpha(strokes.getchannel("A").filter(ImageFilter.GaussianBlur(3)))
    values = set(read(strokes).rasters[0].data)
    assert len(values) > 20
    hole = photo()
    hole.putalpha(strokes.getchannel("A").point(lambda value: 255 - value))
    assert read(hole).rasters[0].data == read(strokes).rasters[0].data


def test_a_stroke_thinner_than_what_is_looked_at_is_found():
    mask = Image.new("RGBA", (4_000, 400))
    mask.putpixel((3_001, 333), (255, 255, 255, 255))
    raster = Raster("RGBA", *mask.size, mask.tobytes())
    masks = read_masks([raster], None, "mask_image")
    assert (masks.reading, sum(masks.rasters[0].data)) == ("painted", 255)


@pytest.mark.parametrize("alpha", [0, 128])
def test_transparency_that_is_the_same_everywhere_says_nothing(alpha):
    mask = on(BLACK, WHITE, MIDDLE)
    mask.putalpha(alpha)
    masks = read(mask)
    assert masks.reading == "white"
    assert share(masks, MIDDLE) == (1, 0)
    assert "transparent alike everywhere" in masks.notes[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
def test_ones_are_read_as_white_and_told(mode):
    mask = Image.fromarray(numpy.asarray(on(BLACK, WHITE, MIDDLE).convert("L")) // 255).convert(mode)
    masks = read(mask)
    assert share(masks, MIDDLE) == (1, 0)
    assert masks.notes == ("mask_image has 0 and 1 where 0 and 255 are meant; 1 was read as white.",)


@pytest.mark.parametrize(
    "mask",
    [
        Image.new("L", SIZE),
        Image.new("RGBA", SIZE, BLACK),
        Image.new("RGBA", SIZE),
        Image.new("L", SIZE, 6),
        Image.fromarray(numpy.full(SIZE[::-1], 200, numpy.uint16)),  # 16 bits
    ],
)
def test_a_mask_of_nothing_is_told(mask):
    masks = read(mask)
    assert masks.is_empty
    assert masks.notes[-1] == "mask_image has nothing white: nothing is redrawn, and what was sent comes back."


def test_a_mask_too_dark_to_count_is_told():
    masks = read(Image.new("L", SIZE, 90))
    assert not masks.is_empty
    assert masks.notes == ("mask_image has nothing lighter than 90 of 255; send 255 where it is to be redrawn.",)
    assert read(Image.new("L", SIZE, 128)).notes == ()


def test_frames_are_read_as_the_first_of_them():
    strokes, empty = on(CLEAR, WHITE, MIDDLE), Image.new("RGBA", SIZE)
    rasters = [Raster("RGBA", *SIZE, image.tobytes()) for image in (strokes, strokes, empty)]
    assert [set(raster.data) for raster in read_masks(rasters[:2], None, "mask_video").rasters] == [{0, 255}] * 2
    assert set(read_masks(rasters, None, "mask_video").rasters[2].data) == {0}
    hole, whole = with_hole(photo(), MIDDLE), photo().convert("RGB")
    frames = [Raster(image.mode, *SIZE, image.tobytes()) for image in (hole, whole)]
    assert [max(raster.data) for raster in read_masks(frames, None, "mask_video").rasters] == [255, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_the_transparent_part_of_a_mask_becomes_its_white_part(mode):
    image, out = Image.new("RGBA", (4, 2), (10, 20, 30, 255)), io.BytesIO()
    image.paste((0, 0, 0, 0), (0, 0, 2, 2))
    # "P": a palette with a transparent colour
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(out, "PNG")
    mask = decode_image(white_where_transparent(out.getvalue())).raster
    assert list(mask.data[:12]) == [255] * 6 + [0] * 6


def test_a_mask_without_transparency_stays_as_it_is():
    for image in (Image.new("L", (4, 2), 255), Image.new("RGBA", (4, 2), (0, 0, 0, 255)), Image.new("RGB", (4, 2))):
        out = io.BytesIO()
        image.save(out, "PNG")
        assert white_where_transparent(out.getvalue()) == out.getvalue()


def test_a_hostile_mask_is_refused():
    for data in (b"", b"\x89PNG\r\n\x1a\n" + b"x" * 50, b"x" * (MAX_BYTES + 1)):
        with pytest.raises(InvalidImage, match=r"^mask "):
            white_where_transparent(data)
