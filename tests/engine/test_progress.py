"""Progress of whatever job begins near nothing, never goes back, and reaches its total."""

import itertools

import pytest
import torch

from tests.asking import perform
from tests.engine.test_isolation import failing_once
from tests.images import encoded, gradient

IMAGE = encoded(gradient(64, 64))
MASK = encoded(gradient(64, 64) // 128 * 255)
CONTROL = {"model": "control", "control_image": IMAGE}
REFINED = {"model": "sdxl", "refiner": {"model": "refiner", "start": 0.6}, "num_inference_steps": 5}
LISTED = {"model": "sd1", "scheduler": "euler", "timesteps": [900, 700, 500, 300, 100]}
JOBS = {
    "plain": {"model": "sd1"},
    "one step": {"model": "sd1", "num_inference_steps": 1},
    "several": {"model": "sd1", "num_images": 3},
    "several alone": {"model": "ddim", "num_images": 2},
    "heun": {"model": "sd1", "scheduler": "heun", "num_inference_steps": 4},
    "dpm2": {"model": "sd1", "scheduler": "dpm2", "num_inference_steps": 4},
    "pndm": {"model": "sd1", "scheduler": "PNDMScheduler", "num_inference_steps": 4},
    "sde": {"model": "sd1", "scheduler": "dpmpp_sde", "num_inference_steps": 3},
    "lcm": {"model": "sd1", "scheduler": "lcm", "num_inference_steps": 4},
    "timesteps": LISTED,
    "timesteps from an image": LISTED | {"image": IMAGE, "strength": 0.6},
    "sigmas": {"model": "flux", "sigmas": [1.0, 0.7, 0.4, 0.2]},
    "from an image": {"model": "sd1", "image": IMAGE, "strength": 0.3, "num_inference_steps": 10},
    "from an image, heun": {"model": "sd1", "image": IMAGE, "strength": 0.5, "scheduler": "heun", "steps": 6},
    "untouched": {"model": "sd1", "image": IMAGE, "strength": 0},
    "masked": {"model": "sdxl", "image": IMAGE, "mask_image": MASK, "strength": 0.6, "num_inference_steps": 6},
    "sd3 from an image": {"model": "sd3", "image": IMAGE, "strength": 0.5, "num_inference_steps": 6},
    "edited": {"model": "edit", "image": IMAGE},
    "controlled": CONTROL,
    "stopped early": {"model": "sdxl", "denoising_end": 0.5, "num_inference_steps": 6},
    "video": {"model": "video", "width": 64, "height": 64, "num_frames": 5},
    "video of a video": {"model": "refilm", "video": [IMAGE] * 5, "strength": 0.5, "num_inference_steps": 4},
    "enlarged by a model": {"model": "upscaler", "image": encoded(gradient(16, 16)), "noise_level": 10},
    "enlarged by a file": {"model": "esrgan", "image": IMAGE, "tile": 64},
    "made larger": {"model": "sd1", "upscale": {"model": "esrgan", "tile": 64}, "width": 128},
    "several made larger": {"model": "sd1", "upscale": {"model": "esrgan", "tile": 64}, "num_images": 2},
    "refined": REFINED,
    "several refined": REFINED | {"num_images": 2},
    "refined by heun": REFINED | {"scheduler": "heun", "num_inference_steps": 8},
    "refined from an image": REFINED | {"image": IMAGE, "strength": 0.8, "num_inference_steps": 10},
    "refined and made larger": REFINED | {"upscale": "esrgan", "num_images": 2},
}
_ids = itertools.count()


@pytest.fixture(scope="module")
def worker(task_worker):
    return task_worker(max_resident_models=2)


async def told(worker, fields):
    """Of every step that was told (how many are done, of how many)."""
    seen = []

    def emit(progress):
        if progress.phase == "inference":
            seen.append((progress.step, progress.total))

    fields = {"prompt": "a red apple", "seed": 7, **fields}
    await perform(worker, fields, f"told-{next(_ids)}", emit)
    return seen


def assert_complete(seen):
    assert seen[0][0] <= 1
    shares = [step / total for step, total in seen]
    assert shares == sorted(shares), seen
    assert 0 <= shares[0] <= shares[-1] == 1, seen


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("name", JOBS)
async def test_progress_begins_near_nothing_never_goes_back_and_reaches_its_total(worker, name):
    assert_complete(await told(worker, JOBS[name]))


async def test_steps_are_counted_as_they_are_drawn(worker):
    assert await told(worker, JOBS["from an image"]) == [(0, 10), (1, 3), (2, 3), (3, 3)]
    two = await told(worker, {"model": "sd1", "num_images": 2})
    assert two == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]  # one by one on a CPU, two steps each
    halves = await told(worker, REFINED)
    assert [step for step in halves if step[0] * 2 == step[1]]  # the first model's half


@pytest.mark.slow
async def test_what_is_drawn_again_tells_where_it_had_been(worker):
    """Memory ran out at the end, and the image was drawn once more in tiles."""
    job = {"model": "sd1", "num_inference_steps": 4}
    await told(worker, job)  # so that it is the model used last

    def spoil(engine):
        pipe = [*engine._pool._residents.values()][-1].pipe
        failing_once(pipe, "vae", torch.OutOfMemoryError("CUDA out of memory"))

    worker.engine.submit(spoil, "test").result()
    seen = await told(worker, job)
    assert_complete(seen)
    assert seen.count((4, 4)) > 1
