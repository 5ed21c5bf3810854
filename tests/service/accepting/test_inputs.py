"""The media of a request: which task it means, what is missing or too much, and in which size it reaches the engine."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.fakes.engine import make_context
from worker.core.errors import InvalidRequest, ParameterOutOfRange, WorkerError
from worker.core.model import Task
from worker.service.accepting import media_reader

MODELS = """
models:
  any: {source: "file:models/sd1"}
  edit-plus: {source: org/edit, architecture: qwen-image-edit-plus}
  flux2: {source: org/flux2, architecture: flux2}
  control: {source: org/control, architecture: sd1, pipeline: StableDiffusionControlNetPipeline, tasks: [controlnet]}
  upscale: {source: org/up, architecture: sd-x4-upscaler}
  wan: {source: org/wan, architecture: wan}
  wan-i2v: {source: org/wan-i2v, architecture: wan-i2v}
  animate: {source: org/animate, architecture: wan, pipeline: WanAnimatePipeline, tasks: [video-to-video]}
  vace: {source: org/vace, architecture: wan, pipeline: WanVACEPipeline, tasks: [video-to-video]}
  kontext: {source: org/kontext, architecture: flux1-kontext}
"""


@pytest.fixture
def context(tmp_path):
    make_context(tmp_path)
    (tmp_path / "media.yaml").write_text(MODELS)
    return make_context(tmp_path, models_yaml=tmp_path / "media.yaml", default_model="any")


def image(width=64, height=64, colour=(200, 30, 30)):
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def video(frames=5, width=64, height=64):
    return [image(width, height, (index, 0, 0)) for index in range(frames)]


def media_of(job):
    return {item.parameter: item for item in job.media}


async def refused(context, kind=InvalidRequest, **fields):
    with pytest.raises(kind) as failure:
        await context.draw(**fields)
    assert context.builder.built == 0
    return failure.value


async def test_a_mask_means_inpainting_and_gets_the_images_size(context):
    job = await context.accept(image=image(70, 45), mask=image(35, 23, (255, 255, 255)))
    assert (job.call.task, job.call.pipeline) == (Task.INPAINTING, "StableDiffusionInpaintPipeline")
    assert (job.image.width, job.image.height) == (job.mask.width, job.mask.height) == (72, 48)
    assert job.mask.mode == "L"
    assert set(job.mask.data) == {255}


async def test_a_mask_without_an_image_is_refused(context):
    error = await refused(context, mask_image=image())
    assert error.message == "image is required for inpainting; send it as base64, data: URI or https URL."
    assert error.field == "image"


async def test_several_images_go_where_several_are_taken(context):
    job = await context.accept(model="edit-plus", images=[image(64, 64), image(100, 50)])
    assert job.call.task is Task.IMAGE_EDITING
    assert [(item.width, item.height) for item in media_of(job)["image"].images] == [(64, 64), (100, 50)]
    both = await context.accept(model="edit-plus", image=image(32, 32), images=image(48, 48))
    assert [item.width for item in media_of(both)["image"].images] == [32, 48]
    nested = await context.accept(model="edit-plus", image=[image(32, 32), [image(48, 48), None]])
    assert [item.width for item in media_of(nested)["image"].images] == [32, 48]
    assert (await context.accept(model="flux2")).call.task is Task.TEXT_TO_IMAGE
    assert (await context.accept(model="flux2", image=image())).call.task is Task.IMAGE_EDITING
    error = await refused(context, ParameterOutOfRange, images=[image()] * 2)
    assert "takes one image for this model; 2 were sent" in error.message


async def test_images_are_counted_together(context, monkeypatch):
    error = await refused(context, ParameterOutOfRange, model="edit-plus", images=[image()] * 17)
    assert "at most 16 images" in error.message
    monkeypatch.setattr(media_reader, "MAX_PIXELS", 64 * 64 * 2)
    error = await refused(context, ParameterOutOfRange, model="edit-plus", images=[image()] * 3)
    assert "8,192 pixels together" in error.message


async def test_a_controlnet_takes_its_image_by_either_name(context):
    for name in ("control_image", "image", "control_images"):
        job = await context.accept(model="control", **{name: image(128, 64)})
        assert (job.call.task, *media_of(job)) == (Task.CONTROLNET, "image")
        assert (job.params["width"], job.params["height"]) == (128, 64)
    assert (await refused(context, model="control")).field == "control_image"


async def test_an_upscaler_keeps_the_size_of_the_image(context):
    job = await context.accept(model="upscale", image=image(128, 72))
    assert (job.image.width, job.image.height) == (128, 72)
    assert job.prompt == "an apple"
    small = await context.accept(model="upscale", image=image(24, 16))
    assert (small.image.width, small.image.height) == (24, 16)
    large = await context.accept(model="upscale", image=image(2000, 1000))
    assert large.image.width * large.image.height <= 2**19


async def test_an_image_becomes_a_video_of_the_familys_size_at_its_own_proportions(context):
    job = await context.accept(model="wan-i2v", image=image(1600, 400))
    assert (job.call.task, job.video.fps) == (Task.IMAGE_TO_VIDEO, 16)
    width, height = job.params["width"], job.params["height"]
    assert abs(width * height / (832 * 480) - 1) < 0.1
    assert 3.5 < width / height < 4.5
    assert (job.image.width, job.image.height) == (width, height)
    ends = await context.accept(model="wan-i2v", image=image(), last_image=image(300, 300))
    assert {(item.images[0].width, item.images[0].height) for item in ends.media} == {(64, 64)}
    assert media_of(ends).keys() == {"image", "last_image"}


async def test_as_many_frames_are_drawn_as_the_family_can_and_as_many_wanted_as_were_asked_for(context):
    job = await context.accept(model="wan", num_frames=80)
    assert (job.params["num_frames"], job.video.frames, job.warnings) == (81, 80, ())
    job = await context.accept(model="wan", num_frames=81)
    assert (job.params["num_frames"], job.video.frames) == (81, 81)


async def test_a_videos_last_frame_stands_until_the_next_that_can_be_drawn_and_it_sets_the_pace(context):
    job = await context.accept(model="wan", video=video(7))
    assert (job.call.task, job.call.pipeline) == (Task.VIDEO_TO_VIDEO, "WanVideoToVideoPipeline")
    frames = media_of(job)["video"].images
    assert (len(frames), frames[6] == frames[7] == frames[8], job.video.frames) == (9, True, 7)
    assert job.video.fps == 16
    assert (await context.accept(model="wan", video=video(7), fps=24)).video.fps == 24
    out = io.BytesIO()
    frames = [Image.fromarray(np.full((64, 64, 3), 40 * index, np.uint8)) for index in range(5)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=100)
    gif = await context.accept(model="wan", video=base64.b64encode(out.getvalue()).decode())
    assert (len(media_of(gif)["video"].images), gif.video.fps) == (5, 10)


async def test_what_only_one_pipeline_has_goes_by_its_own_name(context):
    sent = {"image": image(), "pose_video": video(), "face_video": video(5, 32, 32)}
    job = await context.accept(model="animate", **sent)
    assert media_of(job).keys() == sent.keys()
    assert not sent.keys() & job.params.keys()
    assert media_of(job)["face_video"].images[0].width == 32
    error = await refused(context, model="animate", image=image(), pose_video=video())
    assert error.field == "face_video"
    error = await refused(context, WorkerError, model="animate", **sent | {"face_video": 5})
    assert error.field == "face_video"


async def test_one_mask_of_a_video_is_that_of_all_its_frames(context):
    job = await context.accept(model="vace", video=video(5), mask_image=image(32, 32, (255, 255, 255)))
    masks = media_of(job)["mask"].images
    assert [(mask.mode, mask.width) for mask in masks] == [("L", 64)] * 5


async def test_a_size_asked_of_a_model_that_chooses_its_own_is_its_area(context):
    job = await context.accept(model="kontext", image=image(), width=512, height=256)
    assert job.params["max_area"] == 512 * 256
    assert "max_area" not in (await context.accept(model="kontext", image=image())).params


@pytest.mark.parametrize(
    "sent",
    [
        {"mask_image": "http://127.0.0.1:9/x.png", "image": image()},
        {"images": ["https://localhost/a.png"], "model": "edit-plus"},
        {"video": "http://169.254.169.254/latest", "model": "wan"},
        {"video": ["https://10.0.0.1/a.png", image()], "model": "wan"},
        {"last_image": "file:///etc/passwd", "image": image(), "model": "wan-i2v"},
    ],
)
async def test_every_field_is_guarded_as_image_is(context, sent):
    error = await refused(context, WorkerError, **sent)
    assert error.code == "invalid_image"
    assert error.field == next(iter(sent))
    assert "169.254" not in error.message


async def test_reproduce_sends_back_small_media_and_names_large_ones(context):
    sent = {"image": image(), "mask_image": image(), "strength": 0.5}
    first = await context.draw(**sent)
    assert first["task"] == "inpainting"
    assert first["reproduce"]["input"]["mask_image"] == sent["mask_image"]
    assert (await context.ask(**first["reproduce"]["input"]))["image"] == first["image"]
    noise = np.random.default_rng(1).integers(0, 255, (256, 256, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    large = base64.b64encode(out.getvalue()).decode()
    answer = await context.draw(image=large, mask_image=large, strength=0.5)
    assert not {"image", "mask_image"} & answer["reproduce"]["input"].keys()
    assert "leaves out image and mask_image" in answer["warnings"][0]
