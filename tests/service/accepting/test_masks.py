"""Masks and control images of a request: fitted to their image, read as they were drawn, and said in the answer."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.fakes.engine import make_context
from tests.service.accepting.test_inputs import MODELS, image, media_of
from worker.core.errors import ParameterOutOfRange

WHITE, CLEAR = (255, 255, 255), (0, 0, 0, 0)


@pytest.fixture
def context(tmp_path):
    make_context(tmp_path)
    (tmp_path / "media.yaml").write_text(MODELS)
    return make_context(tmp_path, models_yaml=tmp_path / "media.yaml", default_model="any")


def encoded(picture: Image.Image, format_: str = "PNG", **options) -> str:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return base64.b64encode(out.getvalue()).decode()


def turned(width: int, height: int, orientation: int) -> str:
    """A photo of this size as it is stored, to be turned when it is shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", (width, height), (90, 120, 60)), "JPEG", exif=exif.tobytes())


def strokes(width: int = 64, height: int = 64, where=(32, 32, 64, 64), colour=(*WHITE, 255)) -> str:
    picture = Image.new("RGBA", (width, height), CLEAR)
    picture.paste(colour, where)
    return encoded(picture)


def values(mask) -> np.ndarray:
    return np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.width)


async def test_strokes_on_a_transparent_ground_are_what_is_redrawn_and_the_answer_says_so(context):
    job = await context.accept(image=image(), mask_image=strokes())
    assert job.mask_reading == "painted"
    assert values(job.mask)[32:, 32:].min() == 255
    assert values(job.mask)[:32].max() == values(job.mask)[:, :32].max() == 0
    answer = await context.draw(image=image(), mask_image=strokes())
    assert answer["mask"] == "painted"
    assert "mask_image has transparency: its painted part is redrawn." in answer["warnings"]
    plain = await context.draw(image=image(), mask_image=image(64, 64, WHITE))
    assert (plain["mask"], plain["warnings"]) == ("white", [])
    assert "mask" not in await context.draw(image=image())


async def test_the_image_with_a_hole_is_its_own_mask(context):
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64, 3), np.uint8)).convert("RGBA")
    holed = photo.copy()
    holed.paste(CLEAR, (0, 0, 40, 64))  # more than half of its border
    job = await context.accept(image=encoded(photo), mask_image=encoded(holed))
    assert job.mask_reading == "hole"
    assert values(job.mask)[:, :40].min() == 255
    assert values(job.mask)[:, 40:].max() == 0


@pytest.mark.parametrize("size", [(256, 64), (64, 48), (48, 64), (100, 64), (64, 60)])
async def test_a_mask_of_another_shape_is_refused(context, size):
    with pytest.raises(ParameterOutOfRange) as caught:
        await context.accept(image=image(), mask_image=image(*size, WHITE))
    assert caught.value.message == (
        f"mask_image is {size[0]}x{size[1]} and image 64x64; send a mask of the same shape."
    )
    assert caught.value.field == "mask_image"


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        ((1000, 667), (500, 333)),
        ((1000, 667), (1000, 664)),
        ((70, 45), (35, 23)),
        ((70, 45), (35, 22)),
        ((64, 64), (9, 9)),
    ],
)
async def test_a_mask_whose_sides_were_rounded_covers_the_image_from_edge_to_edge(context, photo, size):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0], max(2, size[1] // 40)))  # along the upper border, which a crop would cut
    job = await context.accept(image=image(*photo), mask_image=encoded(mask))
    assert (job.mask.width, job.mask.height) == (job.image.width, job.image.height)
    assert values(job.mask)[0].min() >= 240


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
async def test_a_mask_of_stored_pixels_is_refused_beside_a_photo_that_its_exif_turns(context, orientation):
    photo = turned(96, 64, orientation)
    job = await context.accept(image=photo, mask_image=image(64, 96, WHITE))
    assert (job.mask.width, job.mask.height, job.warnings) == (64, 96, ())
    with pytest.raises(ParameterOutOfRange) as caught:
        await context.accept(image=photo, mask_image=image(96, 64, WHITE))
    assert caught.value.message == (
        "mask_image is 96x64 and image 64x96; send a mask of the same shape, drawn over image as its EXIF turns it."
    )


@pytest.mark.parametrize(("size", "orientation"), [((96, 64), 3), ((96, 64), 2), ((64, 64), 6)])
async def test_where_the_shape_cannot_show_it_the_turn_is_told(context, size, orientation):
    job = await context.accept(image=turned(*size, orientation), mask_image=image(*size, WHITE))
    assert job.warnings == ("image was turned as its EXIF says; mask_image must be drawn over it as it is shown.",)
    assert not (await context.accept(image=turned(*size, 1), mask_image=image(*size, WHITE))).warnings


async def test_a_mask_of_nothing_costs_nothing(context):
    for mask in (image(64, 64, (0, 0, 0)), encoded(Image.new("RGBA", (64, 64)))):
        job = await context.accept(image=image(), mask_image=mask, strength=1.0)
        assert not job.generates
        assert job.warnings[-1] == "mask_image has nothing white: nothing is redrawn, and what was sent comes back."
    ones = Image.fromarray(np.eye(64, dtype=np.uint8))
    job = await context.accept(image=image(), mask_image=encoded(ones))
    assert job.generates
    assert (values(job.mask) == 255 * np.eye(64)).all()
    assert job.warnings == ("mask_image has 0 and 1 where 0 and 255 are meant; 1 was read as white.",)


async def test_masks_of_videos_are_read_the_same_way(context):
    def mask(first: int) -> str:
        return strokes(where=(first, 0, first + 8, 64))

    clip = [image(64, 64, (index, 0, 0)) for index in range(5)]
    job = await context.accept(model="vace", video=clip, mask_image=mask(8))
    masks = media_of(job)["mask"].images
    assert [(item.mode, values(item)[:, 8:16].min(), values(item)[:, 16:].max()) for item in masks] == [
        ("L", 255, 0)
    ] * 5
    sent = {"image": image(), "pose_video": clip, "face_video": clip, "background_video": clip}
    job = await context.accept(model="animate", **sent, mask_video=[mask(8 * index) for index in range(5)])
    masks = media_of(job)["mask_video"].images
    assert [int(values(item)[0].argmax()) for item in masks] == [0, 8, 16, 24, 32]
    assert "mask_video has transparency: its painted part is redrawn." in job.warnings


@pytest.mark.parametrize(
    ("colour", "ground"), [((255, 255, 255), "black"), ((255, 0, 90), "black"), ((20, 20, 20), "white")]
)
@pytest.mark.parametrize("field", ["control_image", "control_images", "image"])
async def test_lines_on_a_transparent_ground_stay_lines_for_a_controlnet(context, field, colour, ground):
    job = await context.accept(model="control", **{field: strokes(colour=(*colour, 255))})
    pixels = np.frombuffer(job.media[0].images[0].data, np.uint8).reshape(64, 64, 3)
    assert tuple(pixels[0, 0]) == ((0, 0, 0) if ground == "black" else WHITE)
    assert tuple(pixels[-1, -1]) == colour
    assert job.warnings == (f"{field} has transparent parts, which were read as {ground}.",)
    assert not (await context.accept(model="control", **{field: image()})).warnings


async def test_what_was_left_of_a_file_is_told(context):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    answer = await context.draw(image=encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), strength=0.5)
    assert answer["warnings"] == ["image is animated; its first frame was read."]


async def test_a_fast_video_is_drawn_at_sixty_frames_a_second_and_told(context):
    frames = [Image.new("RGB", (64, 64), (25 * index, 0, 0)) for index in range(10)]
    clip = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    job = await context.accept(model="wan", video=clip)
    assert (job.video.fps, job.video.frames) == (60, 6)
    assert job.warnings == ("video has 100 frames a second; 6 of its 10 frames are used, 60 a second.",)
