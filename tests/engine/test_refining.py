"""A refiner draws the last steps: bit-equal to the recipe of two pipelines, with one model on the device or both."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import torch

from tests import builders, tiny_tasks
from tests.asking import perform
from tests.controls import apart
from tests.images import assert_all_differ, assert_differs, encoded, gradient, pixels
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import (
    CorruptFile,
    IncompatibleAdapter,
    InvalidRequest,
    JobCancelled,
    ModelNotFound,
    ParameterOutOfRange,
    UnknownParameter,
)
from worker.wire.request import decode_generation

_ids = itertools.count()


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("refining")
    tiny_tasks.refiner(root / "models/refiner", sdxl=zoo / "models/sdxl")
    entries = {
        "base": {"source": f"file:{zoo}/models/sdxl", "defaults": {"num_inference_steps": 5}, "refiner": "refiner"},
        "refiner": {"source": "file:models/refiner", "aliases": ["polish"]},
        "org/sdxl-refiner": {"architecture": "sdxl-refiner"},
        "sd1": {"source": f"file:{zoo}/models/sd1"},
        "flux": {"source": f"file:{zoo}/models/flux"},
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))
    return Settings(
        models_yaml=root / "models.yaml",
        default_model="base",
        allowed_model_dirs=[zoo, root],
        volume_dir=root / "volume",
        device="cpu",
        warm_up=False,
    )


@pytest.fixture
def worker(shop):
    return build_worker(shop)


async def ask(worker, emit=lambda progress: None, **fields):
    fields = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, **fields}
    return await perform(worker, fields, f"refine-{next(_ids)}", emit)


def two_pipelines(zoo, shop, start, seed=7, scheduler=None, steps=5, **base):
    """The recipe that diffusers documents, with one generator."""
    first = diffusers.StableDiffusionXLPipeline.from_pretrained(zoo / "models/sdxl")
    second = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(shop.models_yaml.parent / "models/refiner")
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator("cpu").manual_seed(seed)
    same = {"prompt": "a red apple", "num_inference_steps": 5, "guidance_scale": 5.0, "generator": generator}
    latents = first(**same, width=64, height=64, denoising_end=start, output_type="latent", **base).images
    again = same | {"num_inference_steps": steps}
    return np.asarray(second(**again, image=latents, denoising_start=start).images[0])


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("start", [0.4, 0.8])
async def test_it_draws_what_the_two_pipelines_draw(worker, zoo, shop, start):
    answer = await ask(worker, refiner={"model": "refiner", "start": start}, guidance_scale=5)
    assert np.array_equal(pixels(answer), two_pipelines(zoo, shop, start))
    assert answer["parameters"]["refiner"] == {"model": "refiner", "revision": None, "start": start}
    assert worker.engine.resident_models == ["refiner"]  # one may stay, and the second one came last


PUBLISHED = {  # as worker-sdxl's own example has it, at a tiny model's size
    "prompt": "a red apple", "negative_prompt": "blurry", "height": 64, "width": 64, "num_inference_steps": 5,
    "refiner_inference_steps": 10, "guidance_scale": 5.0, "strength": 0.3, "high_noise_frac": 0.8, "seed": 7,
    "scheduler": "K_EULER", "num_images": 1, "image_url": None,
}  # fmt: skip


async def test_the_input_that_worker_sdxl_publishes_is_refined_by_the_models_own_refiner(worker):
    answer = await perform(worker, PUBLISHED, f"refine-{next(_ids)}", lambda progress: None)
    assert answer["parameters"]["refiner"] == {"model": "refiner", "revision": None, "start": 0.8, "steps": 10}
    assert answer["reproduce"]["input"]["refiner"]["model"] == "refiner"
    more = await ask(worker, refiner={"start": 0.8, "steps": 10}, negative_prompt="blurry", guidance_scale=5,
                     scheduler="euler", seed=7)  # fmt: skip
    assert np.array_equal(pixels(answer), pixels(more))


async def test_a_refiner_has_steps_of_its_own(worker, zoo, shop):
    answer = await ask(worker, refiner={"start": 0.8, "steps": 10}, guidance_scale=5)
    assert np.array_equal(pixels(answer), two_pipelines(zoo, shop, 0.8, steps=10))


async def test_a_model_without_a_refiner_of_its_own_says_so(worker):
    with pytest.raises(InvalidRequest, match="sd1 has no refiner of its own"):
        await ask(worker, model="sd1", refiner="own")
    with pytest.raises(ParameterOutOfRange, match=r"leaves none of refiner\.steps 3"):
        await ask(worker, refiner={"start": 0.8, "steps": 3})


async def test_a_sampler_that_adds_noise_draws_on_from_the_same_generator(worker, zoo, shop):
    answer = await ask(worker, refiner="refiner", guidance_scale=5, scheduler="euler_a")
    cls = diffusers.EulerAncestralDiscreteScheduler
    assert np.array_equal(pixels(answer), two_pipelines(zoo, shop, 0.8, scheduler=cls))


async def test_start_decides_who_draws_and_every_image_has_its_own_seed(shop):
    worker = build_worker(shop.model_copy(update={"max_resident_models": 2}))
    plain = await ask(worker)
    early, late = [await ask(worker, refiner={"model": "polish", "start": start}) for start in (0.2, 0.6)]
    images = [pixels(item) for item in (plain, early, late)]
    assert_all_differ(*images)
    assert worker.engine.resident_models == ["base", "refiner"]
    several = await ask(worker, refiner={"model": "refiner", "start": 0.6}, num_images=2)
    assert np.array_equal(pixels(several, 0), pixels(late))
    alone = await ask(worker, refiner={"model": "refiner", "start": 0.6}, seed=8)
    assert np.array_equal(pixels(several, 1), pixels(alone))
    again = await ask(worker, **several["reproduce"]["input"])
    assert np.array_equal(pixels(again, 1), pixels(several, 1))
    assert np.array_equal(pixels(await ask(worker)), pixels(plain))


@pytest.mark.slow
async def test_image_to_image_is_refined_too(worker):
    image = encoded(gradient(64, 64))
    first = await ask(worker, image=image, strength=0.5, refiner="refiner")
    assert first["task"] == "image-to-image"
    other = await ask(worker, image=encoded(255 - gradient(64, 64)), strength=0.5, refiner="refiner")
    assert_differs(pixels(first), pixels(other))


async def test_progress_counts_both_and_a_cancel_leaves_nothing(worker):
    before = pixels(await ask(worker))
    generation, seen, jobs = worker.operations.generation, [], []
    accept = generation._accept

    async def accept_and_keep(asked):
        jobs.append(await accept(asked))
        return jobs[-1]

    def emit(progress):
        if progress.phase == "inference":
            seen.append(progress.step / progress.total)
            if progress.step / progress.total > 0.5:
                jobs[-1].stop.cancel()

    generation._accept = accept_and_keep
    with pytest.raises(JobCancelled):
        await ask(worker, emit, refiner={"model": "refiner", "start": 0.4})
    assert seen == sorted(seen)
    assert seen[-1] > 0.5
    generation._accept = accept
    assert np.array_equal(pixels(await ask(worker)), before)


async def test_the_published_refiner_is_taken_without_a_look_at_it(worker):
    request = decode_generation({"prompt": "x", "refiner": "org/sdxl-refiner"})
    job = await worker.operations.generation.acceptor.accept(request, "job")
    assert job.finishing.refiner.call.pipeline == "StableDiffusionXLImg2ImgPipeline"
    assert job.finishing.refiner.call.detection.architecture == "sdxl-refiner"


@pytest.mark.parametrize(
    ("fields", "error", "field", "says"),
    [
        ({"model": "sd1", "refiner": "refiner"}, UnknownParameter, "refiner", "not taken by sd1"),
        ({"model": "flux", "refiner": "refiner"}, UnknownParameter, "refiner", "not taken by flux"),
        ({"refiner": "sd1"}, IncompatibleAdapter, "refiner", "Stable Diffusion 1"),
        ({"refiner": "nowhere"}, ModelNotFound, "refiner", "nowhere"),
        ({"refiner": "https://example.com/x.safetensors"}, ModelNotFound, "refiner", "example.com"),
        ({"refiner": {"model": "refiner", "start": 1}}, ParameterOutOfRange, "refiner", "less than 1"),
        ({"refiner": {"model": "refiner", "strat": 0.5}}, UnknownParameter, "refiner", "start"),
        ({"refiner": "refiner", "denoising_end": 0.5}, InvalidRequest, "denoising_end", "refiner.start"),
        ({"refiner": "refiner", "num_inference_steps": 1}, ParameterOutOfRange, "refiner", "num_inference_steps"),
    ],
)
async def test_what_cannot_be_handed_over_is_refused_before_anything_is_loaded(worker, fields, error, field, says):
    with pytest.raises(error, match=says) as failure:
        await ask(worker, **fields)
    assert failure.value.field == field
    assert not worker.engine.ready


async def test_the_schema_offers_it_where_it_is_taken(worker):
    offered = {}
    for model in ("base", "sd1", "flux", "refiner"):
        schema = await perform(worker, {"action": "schema", "model": model}, "s", lambda progress: None)
        offered[model] = "refiner" in schema["properties"]
    assert offered == {"base": True, "sd1": False, "flux": False, "refiner": True}


async def test_a_refiner_that_cannot_be_loaded_is_blamed_itself(zoo, shop, tmp_path):
    folder = tmp_path / "models/damaged"
    tiny_tasks.refiner(folder, sdxl=zoo / "models/sdxl")
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    worker = build_worker(
        shop.model_copy(
            update={"allow_unregistered_models": True, "allowed_model_dirs": (zoo, tmp_path, shop.models_yaml.parent)}
        )
    )
    with pytest.raises(CorruptFile) as failure:
        await ask(worker, refiner=f"file:{folder}")
    assert failure.value.field == "refiner"
    assert worker.engine.resident_models == []


async def test_a_strength_that_leaves_one_of_the_two_nothing_is_refused_and_0_gives_back_what_was_sent(worker):
    start = {"image": encoded(gradient(64, 64)), "refiner": {"model": "refiner", "start": 0.8}}
    with pytest.raises(ParameterOutOfRange, match=r"at strength 0\.2 leaves one of the two models none") as failure:
        await ask(worker, **start, strength=0.2)
    assert failure.value.field == "refiner"
    with pytest.raises(ParameterOutOfRange, match=r"at strength 0\.3"):  # the pipeline's own
        await ask(worker, **start, num_inference_steps=4)
    assert not worker.engine.ready
    assert np.array_equal(pixels(await ask(worker, **start, strength=0)), gradient(64, 64))


@pytest.mark.slow
async def test_a_vae_decodes_what_the_refiner_drew_and_the_next_job_has_its_own(worker, shop):
    folder = shop.models_yaml.parent / "models/vae"
    with torch.random.fork_rng():
        torch.manual_seed(11)
        builders.vae(scaling_factor=0.13025).save_pretrained(folder)
    before = pixels(await ask(worker, refiner="refiner"))
    other = await ask(worker, refiner="refiner", vae=f"file:{folder}")
    assert_differs(pixels(other), before)
    assert np.array_equal(pixels(await ask(worker, refiner="refiner")), before)


@pytest.mark.slow
async def test_a_class_that_cannot_stop_midway_does_not_hand_over(zoo, shop, tmp_path):
    pair = apart("StableDiffusionXLControlNetPipeline", tmp_path)
    worker = build_worker(
        shop.model_copy(update={"allowed_model_dirs": [zoo, tmp_path], "allow_unregistered_models": True})
    )
    control = {"model": f"file:{pair.control}", "image": encoded(gradient(64, 64))}
    fields = {"model": f"file:{pair.model}", "refiner": "refiner", "controlnets": [control], "num_inference_steps": 5}
    with pytest.raises(UnknownParameter, match="StableDiffusionXLControlNetImg2ImgPipeline cannot stop") as failure:
        await ask(worker, **fields, image=encoded(gradient(64, 64)), strength=0.8)
    assert failure.value.field == "refiner"
    assert not worker.engine.ready
    assert (await ask(worker, **fields))["image"]
