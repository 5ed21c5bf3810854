"""What pipelines return and what they are given: nesting, ranges, libraries; and schedulers that are watched."""

import copy
import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from worker.core.errors import InvalidOutput, JobCancelled
from worker.core.image import Raster
from worker.core.job import Media
from worker.core.pipeline import PipelineRow
from worker.engine.arguments import converted
from worker.engine.outputs import read_images, read_videos
from worker.engine.stepping import watched

RED = np.zeros((4, 6, 3), np.float32)
RED[..., 0] = 1.0
BYTES = bytes([255, 0, 0]) * 24
PIL_RED = Image.fromarray((RED * 255).astype(np.uint8))


def out(**fields):
    return SimpleNamespace(**fields)


@pytest.mark.parametrize(
    "output",
    [
        out(images=[PIL_RED]),
        out(images=RED[None]),
        out(images=[[PIL_RED]]),
        out(images=torch.from_numpy(RED.transpose(2, 0, 1))[None]),
        out(images=torch.from_numpy(RED.transpose(2, 0, 1))[None].to(torch.bfloat16)),
        out(image=RED[None]),
        out(frames=RED[None, None]),
        out(images=(RED * 255).astype(np.uint8)[None]),
        out(images=(RED * 65535).astype(np.uint16)[None]),
        out(prediction=RED[None] * 2 - 1),
        ([PIL_RED],),
    ],
    ids=range(11),
)
def test_an_image_is_found_wherever_it_is(output):
    assert read_images(output) == [Raster("RGB", 6, 4, BYTES)]


def test_grey_layers_and_depth_keep_their_channels():
    depth, alpha = np.full((1, 4, 6, 1), 0.5, np.float32), np.zeros((4, 6, 4), np.float32)
    assert [raster.mode for raster in read_images(out(rgb=RED[None], depth=depth))] == ["RGB", "L"]
    assert [raster.mode for raster in read_images(out(images=[[RED, alpha]]))] == ["RGB", "RGBA"]
    assert read_images(out(images=[Image.new("L", (6, 4), 7)]))[0].data == bytes([7]) * 24


@pytest.mark.parametrize(
    ("frames", "shape"),
    [
        (np.stack([RED] * 3)[None], [3]),
        (np.stack([np.stack([RED] * 3)] * 2), [3, 3]),
        ([[PIL_RED] * 3, [PIL_RED] * 2], [3, 2]),
        ([PIL_RED] * 3, [3]),
        (torch.from_numpy(np.stack([RED.transpose(2, 0, 1)] * 3))[None], [3]),
        ([np.stack([RED] * 3)], [3]),
        ([RED, RED], [2]),
    ],
    ids=range(7),
)
def test_a_video_is_found_with_all_of_its_frames(frames, shape):
    videos = read_videos(out(frames=frames))
    assert [len(video) for video in videos] == shape
    assert {raster.data for video in videos for raster in video} == {BYTES}


def test_nan_black_and_nothing_are_errors_and_a_flat_image_is_none():
    broken = RED[None].copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(InvalidOutput, match="NaN"):
        read_images(out(images=broken))
    for black in (
        RED[None] * 0,
        [Image.new("RGB", (6, 4))],
        np.concatenate([RED * 0, np.ones((4, 6, 1))], axis=-1)[None],
    ):
        with pytest.raises(InvalidOutput, match="completely black"):
            read_images(out(images=black))
    for nothing in ([], None, "text"):
        with pytest.raises(InvalidOutput, match="no image"):
            read_images(out(images=nothing))
    read_images(out(images=RED[None] * 0 + 0.5))
    assert len(read_videos(out(frames=np.stack([RED * 0, RED])[None]))[0]) == 2  # a fade from black


@dataclass
class Condition:
    """As LTX-2 has them."""

    frames: Any
    strength: float = 1.0


def call(image=None, conditions: list[Condition] | Condition | None = None):
    """A pipeline's call."""


@pytest.mark.parametrize(
    ("form", "count", "expected"),
    [
        ("image", 1, lambda a: a),
        ("images", 2, lambda a, b: [a, b]),
        ("controls", 2, lambda a, b: [a, b]),
        ("batch", 2, lambda a, b: [[a, b]]),
        ("grid", 3, lambda a, b, c: [[a, b], [c, None]]),
    ],
)
def test_images_take_the_form_that_the_pipeline_wants(form, count, expected):
    rasters = tuple(Raster("L", 1, 1, bytes([index])) for index in range(count))
    signature = inspect.signature(call).parameters
    made = converted(Media("image", rasters, form, "image"), signature)

    def values(item):
        return [values(part) for part in item] if isinstance(item, list) else item and item.getpixel((0, 0))

    assert values(made) == expected(*range(count)) or form == "image"
    inverted = converted(Media("image", rasters[:1], "unmask", "mask_image"), signature)
    assert inverted.getpixel((0, 0)) == 255


def test_a_condition_holds_an_image_or_a_whole_video():
    rasters = tuple(Raster("L", 1, 1, bytes([index])) for index in range(2))
    signature = inspect.signature(call).parameters
    (video,) = converted(Media("conditions", rasters, "condition", "video"), signature)
    assert len(video.frames) == 2
    images = converted(Media("conditions", rasters, "condition", "images"), signature)
    assert [type(item.frames).__name__ for item in images] == ["Image", "Image"]


def test_a_scheduler_is_watched_also_as_a_copy_and_left_as_it_was():
    scheduler = DDIMScheduler()
    pipe, seen = SimpleNamespace(components={"scheduler": scheduler, "vae": object()}), []
    scheduler.set_timesteps(3)
    sample = torch.zeros(1, 3, 2, 2)
    with watched(pipe, PipelineRow(""), {}, lambda step, latents: seen.append(step)) as callbacks:
        assert callbacks == {}
        assert "eta" in inspect.signature(scheduler.step).parameters  # pipelines ask so
        copied = copy.deepcopy(scheduler)
        for part in (scheduler, copied):
            part.step(sample, scheduler.timesteps[0], sample)
    assert seen == [0, 1]
    assert type(scheduler) is DDIMScheduler

    def stop(step, latents):
        raise JobCancelled("The job was cancelled.")

    with pytest.raises(JobCancelled), watched(pipe, PipelineRow(""), {}, stop):
        scheduler.step(sample, scheduler.timesteps[0], sample)
    assert type(scheduler) is DDIMScheduler
