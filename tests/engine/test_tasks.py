"""Every task through the real engine: what comes back depends on what was sent, and is what was asked for."""

import base64
import itertools
import sys

import numpy as np
import pytest
from diffusers import FluxKontextPipeline
from jsonschema import Draft202012Validator

from tests.answers import files_of
from tests.asking import perform
from tests.images import assert_differs, encoded, gradient, pixels
from worker.core.errors import InvalidRequest, JobCancelled
from worker.media.video import decode_video


@pytest.fixture(scope="module")
def shop(task_worker):
    """A worker with a tiny model for each task."""
    return task_worker()


_ids = itertools.count()
IMAGE, OTHER = gradient(64, 64), 255 - gradient(64, 64)


async def ask(worker, emit=lambda progress: None, **fields):
    return await perform(worker, {"prompt": "a red apple", "seed": 7, **fields}, f"task-{next(_ids)}", emit)


def half_mask(width=64, height=64):
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:, width // 2 :] = 255
    return mask


def video(frames=9, width=64, height=64):
    return [encoded(np.roll(gradient(width, height), 8 * index, axis=1)) for index in range(frames)]


def clip(answer, index=0):
    return decode_video(base64.b64decode(files_of(answer)[index]))


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["sd1", "sdxl", "flux", "fill"])
async def test_inpainting_draws_inside_the_mask_and_leaves_the_rest(shop, model):
    fields = {"model": model, "image": encoded(IMAGE), "mask": encoded(half_mask()), "width": 64, "height": 64}
    if model != "fill":
        fields["strength"] = 1.0
    answer = await ask(shop, **fields)
    assert answer["task"] == "inpainting"
    drawn = pixels(answer).astype(int)
    assert np.abs(drawn[:, :32] - IMAGE[:, :32]).max() <= 1
    assert np.abs(drawn[:, 32:] - IMAGE[:, 32:]).mean() > 5
    other = pixels(await ask(shop, **fields | {"prompt": "a blue boat in a storm"}))
    assert_differs(other, drawn)


async def test_only_the_masked_part_can_be_redrawn_in_full_size(shop):
    mask = np.zeros_like(IMAGE)
    mask[24:40, 40:56] = 255
    size = {"image": encoded(IMAGE), "mask_image": encoded(mask)}
    answer = await ask(shop, **size, padding_mask_crop=4, strength=1.0)
    outside = mask[..., 0] == 0
    assert np.abs(pixels(answer).astype(int) - IMAGE)[outside].max() <= 1
    assert_differs(pixels(answer), pixels(await ask(shop, **size, strength=1.0)))


async def test_a_strength_of_one_step_keeps_most_of_the_image(shop):
    small = pixels(await ask(shop, image=encoded(IMAGE), strength=0.1, num_inference_steps=10)).astype(int)
    large = pixels(await ask(shop, image=encoded(IMAGE), strength=1.0, num_inference_steps=10)).astype(int)
    assert np.abs(small - large).mean() > 1
    with pytest.raises(InvalidRequest, match="leaves no step"):
        await ask(shop, image=encoded(IMAGE), strength=0.05, num_inference_steps=10)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["sd1", "sdxl", "sd3", "flux"])
async def test_a_strength_of_0_gives_the_image_back(shop, model):
    answer = await ask(shop, model=model, image=encoded(IMAGE), strength=0, num_images=2)
    assert (answer["task"], answer["seeds"]) == ("image-to-image", [7, 8])
    assert all(np.array_equal(pixels(answer, index), IMAGE) for index in range(2))
    masked = {"image": encoded(IMAGE), "mask_image": encoded(half_mask())}
    assert np.array_equal(pixels(await ask(shop, model=model, **masked, strength=0)), IMAGE)
    larger = await ask(shop, model=model, image=encoded(IMAGE), strength=0, width=96, height=64)
    assert pixels(larger).shape == (64, 96, 3)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["sd1", "sdxl", "flux", "fill"])
async def test_outpainting_draws_around_the_image_and_leaves_it(shop, model):
    fields = {"model": model, "image": encoded(IMAGE), "outpaint": {"left": 16, "bottom": 32}}
    answer = await ask(shop, **fields)
    assert (answer["task"], answer["width"], answer["height"]) == ("inpainting", 80, 96)
    drawn = pixels(answer).astype(int)
    assert np.abs(drawn[:64, 16:] - IMAGE).max() <= 1
    continued = np.pad(IMAGE, ((0, 32), (16, 0), (0, 0)), mode="edge")
    assert np.abs(drawn - continued)[64:].mean() > 5
    assert np.abs(drawn - continued)[:, :16].mean() > 5
    again = await ask(shop, **answer["reproduce"]["input"])
    assert np.array_equal(pixels(again), drawn)


async def test_a_canvas_grows_to_the_grid_of_the_family(shop):
    answer = await ask(shop, model="sd1", image=encoded(IMAGE), outpaint={"right": 3, "top": 8})
    assert (answer["width"], answer["height"]) == (72, 72)
    assert np.abs(pixels(answer).astype(int)[8:, :64] - IMAGE).max() <= 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "upscaler", "image": encoded(IMAGE), "outpaint": {"left": 8}}, "which upscaler is not for"),
        ({"image": encoded(IMAGE), "task": "image-to-image", "outpaint": {"left": 8}}, "image-to-image is not for"),
        ({"outpaint": {"left": 8}}, "send image with it"),
        ({"image": encoded(IMAGE), "outpaint": {}}, "above 0"),
        ({"image": encoded(IMAGE), "mask_image": encoded(half_mask()), "outpaint": {"top": 8}}, "it or mask_image"),
        ({"image": encoded(IMAGE), "outpaint": {"up": 8}}, "it takes left, top, right, bottom"),
        ({"image": encoded(IMAGE), "outpaint": {"top": -8}}, "must be 0 or more"),
    ],
)
async def test_margins_that_cannot_be_filled_are_refused_before_anything_is_loaded(task_worker, fields, said):
    worker = task_worker()
    with pytest.raises(InvalidRequest, match=said) as refused:
        await ask(worker, **fields)
    assert refused.value.field == "outpaint"
    assert worker.engine.resident_models == []


async def test_a_strength_of_0_gives_the_video_back(shop):
    answer = await ask(shop, model="refilm", video=video(), strength=0, width=64, height=64, output={"format": "png"})
    assert [pixels(answer, index).tobytes() for index in range(9)] == [
        np.roll(gradient(64, 64), 8 * index, axis=1).tobytes() for index in range(9)
    ]


async def test_editing_depends_on_the_image_and_the_words(shop, monkeypatch):
    # The class brings what it edits to one of these, and the usual ones have a million pixels.
    kontext = sys.modules[FluxKontextPipeline.__module__]
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 64)])
    size = {"width": 64, "height": 64}
    first = await ask(shop, model="kontext", image=encoded(IMAGE), **size)
    assert first["task"] == "image-editing"
    assert pixels(first).shape == (64, 64, 3)
    other = await ask(shop, model="kontext", image=encoded(OTHER), **size)
    assert_differs(pixels(first), pixels(other))


async def test_a_controlnet_follows_its_image(shop):
    answers = [await ask(shop, model="control", **{name: encoded(image)}) for name, image in (
        ("control_image", IMAGE), ("image", IMAGE), ("control_image", OTHER))]  # fmt: skip
    first, same, other = (pixels(answer) for answer in answers)
    assert answers[0]["task"] == "controlnet"
    assert np.array_equal(first, same)
    assert_differs(first, other)
    without = pixels(await ask(shop, model="control", control_image=encoded(IMAGE), controlnet_conditioning_scale=0.0))
    assert_differs(first, without)
    two = await ask(shop, model="control", control_image=encoded(IMAGE), num_images=2)
    assert two["seeds"] == [7, 8]
    assert np.abs(pixels(two).astype(int) - first).max() <= 1
    with pytest.raises(InvalidRequest, match="control_image is required for controlnet"):
        await ask(shop, model="control")


async def test_an_upscaler_makes_the_image_larger(shop):
    answer = await ask(shop, model="upscaler", image=encoded(gradient(64, 32)), noise_level=10)
    assert (answer["task"], answer["width"], answer["height"]) == ("upscaling", 256, 128)
    assert pixels(answer).shape == (128, 256, 3)


async def test_a_video_has_the_frames_the_size_and_the_pace_that_were_asked_for(shop):
    answer = await ask(shop, model="video", width=96, height=64, num_frames=9, fps=12, num_images=2)
    assert (answer["task"], answer["format"], answer["num_frames"], answer["fps"]) == ("text-to-video", "mp4", 9, 12)
    assert "image" not in answer
    assert len(answer["videos"]) == 2
    assert answer["seeds"] == [7, 8]
    seen = clip(answer)
    assert (len(seen.frames), seen.fps) == (9, 12)
    assert {(frame.width, frame.height) for frame in seen.frames} == {(96, 64)}
    assert clip(answer, 1).frames != seen.frames
    again = await ask(shop, **answer["reproduce"]["input"])
    assert again["videos"] == answer["videos"]
    alone = await ask(shop, model="video", width=96, height=64, num_frames=9, fps=12, seed=8)
    assert clip(alone).frames == clip(answer, 1).frames


@pytest.mark.slow
async def test_a_video_from_a_video_depends_on_it(shop):
    sent = {"model": "refilm", "strength": 0.5, "width": 64, "height": 64, "num_inference_steps": 4}
    first = await ask(shop, **sent, video=video())
    assert (first["task"], first["num_frames"]) == ("video-to-video", 9)
    # Eleven frames are more than 8 + 1 and less than 12 + 1: the last two have no latent of their own.
    assert (await ask(shop, **sent, video=video(11)))["num_frames"] == 11
    other = await ask(shop, **sent, video=video()[::-1])
    assert clip(other).frames != clip(first).frames
    as_file = await ask(
        shop, **sent, video=(await ask(shop, model="video", width=64, height=64, num_frames=9))["video"]
    )
    assert as_file["num_frames"] == 9


async def test_a_model_without_words_draws_by_its_seed_and_says_so(shop):
    first = await ask(shop, model="ddim")
    assert "reads no prompt" in first["warnings"][0]
    assert np.array_equal(pixels(first), pixels(await perform(shop, {"model": "ddim", "seed": 7}, "d", lambda p: None)))
    assert_differs(pixels(first), pixels(await ask(shop, model="ddim", seed=8)))


async def test_a_pipeline_without_callbacks_tells_its_steps_and_stops_at_one(shop):
    seen = []
    await ask(shop, seen.append, model="ddim", num_inference_steps=3)
    assert [(item.step, item.total) for item in seen if item.phase == "inference"] == [(0, 3), (1, 3), (2, 3), (3, 3)]

    generation, steps = shop.operations.generation, []
    accept = generation._accept

    async def accept_and_keep(asked):
        generation.job = await accept(asked)
        return generation.job

    def cancel(progress):
        if progress.phase == "inference":
            steps.append(progress.step)
            if progress.step == 2:
                generation.job.stop.cancel()

    generation._accept = accept_and_keep
    try:
        with pytest.raises(JobCancelled):
            await ask(shop, cancel, model="ddim", num_inference_steps=50)
    finally:
        del generation._accept
    assert steps == [0, 1, 2]
    before = pixels(await ask(shop, model="ddim"))
    assert np.array_equal(before, pixels(await ask(shop, model="ddim")))


async def test_the_worlds_own_random_numbers_are_left_alone(shop):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    await ask(shop)
    assert torch.equal(torch.rand(3), expected)


async def test_a_pipelines_own_strength_needs_enough_steps_too(task_worker):
    """SDXL redraws 0.3 by itself, which two steps cannot: said before anything is loaded, not by a failing pipeline."""
    worker = task_worker()
    with pytest.raises(InvalidRequest, match=r"0\.3 x 2 leaves no step") as refused:
        await ask(worker, model="sdxl", image=encoded(IMAGE))
    assert refused.value.field == "strength"
    with pytest.raises(InvalidRequest, match=r"0\.3 x 3 leaves no step"):
        await ask(worker, model="sdxl", image=encoded(IMAGE), sigmas=[3.0, 2.0, 1.0])
    assert worker.engine.resident_models == []


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("refilm", {"prompt": "x", "video": "https://example.com/a.mp4", "strength": 0.5}),
        ("fill", {"prompt": "x", "image": "https://example.com/a.png", "outpaint": {"right": 64}}),
        ("sd1", {"prompt": "x", "embeddings": ["org/word"], "hypernetworks": ["org/style"]}),
    ],
)
async def test_the_schema_takes_what_the_worker_takes(shop, model, sent):
    schema = await perform(shop, {"action": "schema", "model": model}, "s", lambda progress: None)
    check = Draft202012Validator(schema)
    check.check_schema(schema)
    assert list(check.iter_errors(sent)) == []
    assert not check.is_valid({"prompt": "x", "image": "https://example.com/a.png"}) or model == "sd1"


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 9, 13])
async def test_a_video_has_as_many_frames_as_were_asked_for_whatever_the_model_makes(shop, frames):
    answer = await ask(shop, model="video", width=64, height=64, num_frames=frames)
    assert (answer["num_frames"], answer["warnings"]) == (frames, [])
    assert answer["parameters"]["num_frames"] == answer["reproduce"]["input"]["num_frames"] == frames


async def test_true_guidance_is_never_silently_left_out(shop):
    plain = await ask(shop, model="flux")
    unguided = await ask(shop, model="flux", negative_prompt="blue")
    assert np.array_equal(pixels(unguided), pixels(plain))
    assert unguided["warnings"] == ["negative_prompt changes nothing at true_cfg_scale 1.0; send one above 1."]
    guided = await ask(shop, model="flux", true_cfg_scale=4.0)
    assert_differs(pixels(guided), pixels(plain))
    assert np.array_equal(
        pixels(await ask(shop, model="flux", true_cfg_scale=4.0, negative_prompt=" ")), pixels(guided)
    )
