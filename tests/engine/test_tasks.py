"""Every task through the real engine: what comes back depends on what was sent, and is what was asked for."""

import base64
import itertools
import json

import numpy as np
import pytest

from tests import tiny_tasks
from tests.pictures import encoded, gradient, pixels
from worker.app import build_worker
from worker.core.errors import InvalidRequest, JobCancelled
from worker.media.video import decode_video
from worker.settings import Settings


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    """A worker with a tiny model for each task."""
    root = tmp_path_factory.mktemp("tasks")
    models = root / "models"
    sd1, flux = zoo / "models/sd1", zoo / "models/flux"
    folders = {
        "kontext": tiny_tasks.kontext(flux, models / "kontext"),
        "fill": tiny_tasks.fill(models / "fill", flux=flux),
        "control": tiny_tasks.controlnet(models / "control", sd1=sd1),
        "upscaler": tiny_tasks.upscaler(models / "upscaler", sd1=sd1),
        "film": tiny_tasks.cogvideox(models / "film"),
        "refilm": tiny_tasks.cogvideox(models / "refilm", from_video=1),
        "ddim": tiny_tasks.unconditional(models / "ddim"),
        "sd1": sd1,
        "sdxl": zoo / "models/sdxl",
        "flux": flux,
    }
    entries = {
        name: {"source": f"file:{folder}", "defaults": {"num_inference_steps": 2}} for name, folder in folders.items()
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))
    settings = {"models_yaml": root / "models.yaml", "default_model": "sd1", "allowed_model_dirs": [zoo, root]}
    return build_worker(Settings(**settings, volume_dir=root / "volume", device="cpu", warm_up=False))


_ids = itertools.count()
PICTURE, OTHER = gradient(64, 64), 255 - gradient(64, 64)


async def ask(worker, emit=lambda progress: None, **fields):
    return await worker.actions.perform({"prompt": "a red apple", "seed": 7, **fields}, f"task-{next(_ids)}", emit)


def half_mask(width=64, height=64):
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:, width // 2 :] = 255
    return mask


def film(frames=9, width=64, height=64):
    return [encoded(np.roll(gradient(width, height), 8 * index, axis=1)) for index in range(frames)]


def clip(answer, index=0):
    return decode_video(base64.b64decode(answer["videos"][index]))


@pytest.mark.parametrize("model", ["sd1", "sdxl", "flux", "fill"])
async def test_inpainting_draws_inside_the_mask_and_leaves_the_rest(shop, model):
    fields = {"model": model, "image": encoded(PICTURE), "mask": encoded(half_mask()), "width": 64, "height": 64}
    if model != "fill":
        fields["strength"] = 1.0
    answer = await ask(shop, **fields)
    assert answer["task"] == "inpainting"
    drawn = pixels(answer).astype(int)
    assert np.abs(drawn[:, :32] - PICTURE[:, :32]).max() <= 1
    assert np.abs(drawn[:, 32:] - PICTURE[:, 32:]).mean() > 5
    other = pixels(await ask(shop, **fields | {"prompt": "a blue boat in a storm"}))
    assert not np.array_equal(other, drawn)


async def test_only_the_masked_part_can_be_redrawn_in_full_size(shop):
    mask = np.zeros_like(PICTURE)
    mask[24:40, 40:56] = 255
    size = {"image": encoded(PICTURE), "mask_image": encoded(mask)}
    answer = await ask(shop, **size, padding_mask_crop=4, strength=1.0)
    outside = mask[..., 0] == 0
    assert np.abs(pixels(answer).astype(int) - PICTURE)[outside].max() <= 1
    assert not np.array_equal(pixels(answer), pixels(await ask(shop, **size, strength=1.0)))


async def test_a_strength_of_one_step_keeps_most_of_the_picture(shop):
    small = pixels(await ask(shop, image=encoded(PICTURE), strength=0.1, num_inference_steps=10)).astype(int)
    large = pixels(await ask(shop, image=encoded(PICTURE), strength=1.0, num_inference_steps=10)).astype(int)
    assert np.abs(small - large).mean() > 1
    with pytest.raises(InvalidRequest, match="leaves no step"):
        await ask(shop, image=encoded(PICTURE), strength=0.0)


async def test_editing_depends_on_the_picture_and_the_words(shop):
    size = {"width": 64, "height": 64}
    first = await ask(shop, model="kontext", image=encoded(PICTURE), **size, _auto_resize=False)
    assert first["task"] == "image-editing"
    assert pixels(first).shape == (64, 64, 3)
    assert not np.array_equal(
        pixels(first), pixels(await ask(shop, model="kontext", image=encoded(OTHER), **size, _auto_resize=False))
    )


async def test_a_controlnet_follows_its_picture(shop):
    answers = [await ask(shop, model="control", **{name: encoded(picture)}) for name, picture in (
        ("control_image", PICTURE), ("image", PICTURE), ("control_image", OTHER))]  # fmt: skip
    first, same, other = (pixels(answer) for answer in answers)
    assert answers[0]["task"] == "controlnet"
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    without = pixels(
        await ask(shop, model="control", control_image=encoded(PICTURE), controlnet_conditioning_scale=0.0)
    )
    assert not np.array_equal(first, without)
    two = await ask(shop, model="control", control_image=encoded(PICTURE), num_images=2)
    assert two["seeds"] == [7, 8]
    assert np.abs(pixels(two).astype(int) - first).max() <= 1
    with pytest.raises(InvalidRequest, match="control_image is required for controlnet"):
        await ask(shop, model="control")


async def test_an_upscaler_makes_the_picture_larger(shop):
    answer = await ask(shop, model="upscaler", image=encoded(gradient(64, 32)), noise_level=10)
    assert (answer["task"], answer["width"], answer["height"]) == ("upscaling", 256, 128)
    assert pixels(answer).shape == (128, 256, 3)


async def test_a_film_has_the_frames_the_size_and_the_pace_that_were_asked_for(shop):
    answer = await ask(shop, model="film", width=96, height=64, num_frames=9, fps=12, num_images=2)
    assert (answer["task"], answer["format"], answer["num_frames"], answer["fps"]) == ("text-to-video", "mp4", 9, 12)
    assert "image" not in answer
    assert answer["video"] == answer["videos"][0]
    assert answer["seeds"] == [7, 8]
    seen = clip(answer)
    assert (len(seen.frames), seen.fps) == (9, 12)
    assert {(frame.width, frame.height) for frame in seen.frames} == {(96, 64)}
    assert clip(answer, 1).frames != seen.frames
    again = await ask(shop, **answer["reproduce"]["input"])
    assert again["videos"] == answer["videos"]
    alone = await ask(shop, model="film", width=96, height=64, num_frames=9, fps=12, seed=8)
    assert clip(alone).frames == clip(answer, 1).frames


async def test_a_film_from_a_film_depends_on_it(shop):
    sent = {"model": "refilm", "strength": 0.5, "width": 64, "height": 64, "num_inference_steps": 4}
    first = await ask(shop, **sent, video=film())
    assert (first["task"], first["num_frames"]) == ("video-to-video", 9)
    # Eleven frames are more than 8 + 1 and less than 12 + 1: the last two have no latent of their own.
    assert (await ask(shop, **sent, video=film(11)))["num_frames"] == 9
    other = await ask(shop, **sent, video=film()[::-1])
    assert clip(other).frames != clip(first).frames
    as_file = await ask(shop, **sent, video=(await ask(shop, model="film", width=64, height=64, num_frames=9))["video"])
    assert as_file["num_frames"] == 9


async def test_a_model_without_words_draws_by_its_seed_and_says_so(shop):
    first = await ask(shop, model="ddim")
    assert "reads no prompt" in first["warnings"][0]
    assert np.array_equal(
        pixels(first), pixels(await shop.actions.perform({"model": "ddim", "seed": 7}, "d", lambda p: None))
    )
    assert not np.array_equal(pixels(first), pixels(await ask(shop, model="ddim", seed=8)))


async def test_a_pipeline_without_callbacks_tells_its_steps_and_stops_at_one(shop):
    seen = []
    await ask(shop, seen.append, model="ddim", num_inference_steps=3)
    assert [(item.step, item.total) for item in seen if item.phase == "inference"] == [(1, 3), (2, 3), (3, 3)]

    generation, steps = shop.actions.generation, []
    accept = generation.accept

    async def accept_and_keep(request, job_id):
        generation.job = await accept(request, job_id)
        return generation.job

    def cancel(progress):
        if progress.phase == "inference":
            steps.append(progress.step)
            if progress.step == 2:
                generation.job.stop.cancel()

    generation.accept = accept_and_keep
    try:
        with pytest.raises(JobCancelled):
            await ask(shop, cancel, model="ddim", num_inference_steps=50)
    finally:
        del generation.accept
    assert steps == [1, 2]
    before = pixels(await ask(shop, model="ddim"))
    assert np.array_equal(before, pixels(await ask(shop, model="ddim")))


async def test_the_worlds_own_random_numbers_are_left_alone(shop):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    await ask(shop)
    assert torch.equal(torch.rand(3), expected)
