"""Whole jobs through the real engine: what a caller sees, against plain diffusers."""

import itertools

import numpy as np
import pytest

from tests.asking import perform
from tests.images import assert_differs, drawn_by_diffusers, encoded, gradient, pixels
from worker.core.errors import InvalidOutput, ParameterOutOfRange, WorkerError


def quiet(progress):
    pass


_ids = itertools.count()


async def draw(worker, **fields):
    # A new id each time: the same job delivered twice would be answered from memory.
    return await perform(worker, {"prompt": "a red apple", "seed": 7, **fields}, f"job-{next(_ids)}", quiet)


async def test_an_image_is_bit_equal_to_a_direct_call(worker, zoo):
    answer = await draw(worker)
    direct = drawn_by_diffusers(zoo / "models/sd1", 7, prompt="a red apple", num_inference_steps=3)
    assert np.array_equal(pixels(answer), direct)
    assert answer["seed"] == 7
    assert answer["task"] == "text-to-image"
    assert (answer["width"], answer["height"]) == (64, 64)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("model", "folder", "architecture"),
    [("tiny-xl", "sdxl", "sdxl"), ("tiny-sd3", "sd3", "sd3"), ("tiny-flux", "flux", "flux1")],
)
async def test_other_families_are_detected_and_bit_equal_too(worker, zoo, model, folder, architecture):
    seen = await perform(worker, {"action": "inspect", "model": model}, "i", quiet)
    assert seen["architecture"].startswith(architecture)
    answer = await draw(worker, model=model, width=64, height=64, guidance_scale=4)
    size = {"width": 64, "height": 64, "guidance_scale": 4.0, "num_inference_steps": 3}
    assert np.array_equal(pixels(answer), drawn_by_diffusers(zoo / "models" / folder, 7, prompt="a red apple", **size))
    image = encoded(gradient(64, 64))
    assert_differs(pixels(await draw(worker, model=model, image=image, strength=0.7)), pixels(answer))


async def test_without_a_seed_one_is_chosen_and_reported(worker):
    first = await perform(worker, {"prompt": "x"}, "a", quiet)
    second = await perform(worker, {"prompt": "x"}, "b", quiet)
    assert first["seed"] != second["seed"]
    again = await draw(worker, prompt="x", seed=first["seed"])
    assert np.array_equal(pixels(first), pixels(again))


async def test_what_reproduce_says_draws_the_same_image(worker, zoo):
    lora = f"file:{zoo}/models/lora.safetensors"
    first = await perform(
        worker, {"prompt": "x", "num_images": 2, "sampler": "euler_a", "cfg_scale": 4, "loras": [lora]}, "a", quiet
    )
    again = await perform(worker, first["reproduce"]["input"], "b", quiet)
    assert np.array_equal(pixels(first, 0), pixels(again, 0))
    assert np.array_equal(pixels(first, 1), pixels(again, 1))
    assert first["seeds"] == again["seeds"]


async def test_image_to_image_is_bit_equal_to_a_direct_call(worker, zoo):
    from PIL import Image

    image = gradient(64, 64)
    answer = await draw(worker, image=encoded(image), strength=0.7)
    direct = drawn_by_diffusers(
        zoo / "models/sd1",
        7,
        "StableDiffusionImg2ImgPipeline",
        prompt="a red apple",
        image=Image.fromarray(image),
        strength=0.7,
        num_inference_steps=3,
    )
    assert answer["task"] == "image-to-image"
    assert np.array_equal(pixels(answer), direct)


async def test_an_input_image_is_fitted_to_the_models_grid(worker):
    answer = await draw(worker, image=encoded(gradient(70, 45)), strength=0.5)
    assert (answer["width"], answer["height"]) == (72, 48)
    asked = await draw(worker, image=encoded(gradient(70, 45)), strength=0.5, width=64, height=32)
    assert pixels(asked).shape == (32, 64, 3)


async def test_instruction_editing_depends_on_the_image(worker):
    first = await draw(worker, model="tiny-edit", image=encoded(gradient(64, 64)))
    second = await draw(worker, model="tiny-edit", image=encoded(255 - gradient(64, 64)))
    assert first["task"] == "image-editing"
    assert_differs(pixels(first), pixels(second))


async def test_a_scheduler_changes_one_job_only(worker):
    before = pixels(await draw(worker))
    other = await draw(worker, scheduler="K_EULER_ANCESTRAL")
    assert other["parameters"]["scheduler"] == "EulerAncestralDiscreteScheduler"
    assert_differs(pixels(other), before)
    assert np.array_equal(pixels(await draw(worker)), before)


async def test_an_unknown_scheduler_is_refused_with_the_list(worker):
    with pytest.raises(ParameterOutOfRange, match="euler_a") as failure:
        await draw(worker, scheduler="turbo-9000")
    assert failure.value.field == "scheduler"
    assert worker.engine.resident_models == []


async def test_a_single_file_draws_what_its_repository_draws(worker, zoo):
    from_file = await draw(worker, model="tiny-file")
    assert np.array_equal(pixels(from_file), pixels(await draw(worker, num_inference_steps=3)))


async def test_only_the_allowed_number_of_models_stays(worker):
    await draw(worker)
    assert worker.engine.resident_models == ["tiny"]
    await draw(worker, model="tiny-xl")
    assert worker.engine.resident_models == ["tiny-xl"]
    answer = await perform(worker, {"action": "unload", "model": "tiny-xl"}, "u", quiet)
    assert answer["unloaded"]
    assert worker.engine.resident_models == []


async def test_preload_makes_the_first_job_warm(worker):
    answer = await perform(worker, {"action": "preload", "model": "tiny"}, "p", quiet)
    assert answer["resident"]
    assert worker.engine.resident_models == ["tiny"]
    assert (await draw(worker))["timings"]["load_s"] < 0.05


async def test_nan_pixels_are_an_error(worker, monkeypatch):
    import torch

    await draw(worker)

    def poison(engine):
        resident = engine._pool.get(next(iter(engine._pool._residents)))
        torch.nn.init.constant_(next(resident.pipe.unet.conv_out.parameters()), float("nan"))

    worker.engine.submit(poison, "poison").result()
    with pytest.raises(InvalidOutput, match="NaN"):
        await draw(worker)


async def test_a_broken_pipeline_is_dropped_and_the_next_job_is_clean(worker, monkeypatch):
    before = pixels(await draw(worker))

    def breaks(engine):
        resident = engine._pool.get(next(iter(engine._pool._residents)))

        def fail(*args, **kwargs):
            raise RuntimeError("secret detail /root/x")

        resident.pipe.unet.forward = fail

    worker.engine.submit(breaks, "break").result()
    with pytest.raises(WorkerError) as failure:
        await draw(worker)
    assert failure.value.code == "engine_failure"
    assert "secret" not in failure.value.message
    assert worker.engine.resident_models == []
    assert np.array_equal(pixels(await draw(worker)), before)


async def test_progress_tells_of_loading_and_every_step(worker):
    seen = []
    await perform(worker, {"prompt": "x", "seed": 1}, "job", seen.append)
    assert [item.phase for item in seen][:2] == ["load", "load"]
    assert [(item.step, item.total) for item in seen if item.phase == "inference"] == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
async def test_a_schedule_that_the_scheduler_cannot_take_is_refused_before_anything_is_loaded(worker, name):
    with pytest.raises(ParameterOutOfRange, match=f"{name} cannot be given to DDIMScheduler") as refused:
        await draw(worker, **{name: [900, 500]})
    assert refused.value.field == name
    assert worker.engine.resident_models == []
