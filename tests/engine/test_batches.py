"""Several jobs in one pipeline call: each gets what it would have got alone, whatever happens to the others."""

import asyncio
import functools
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.answers import files_of
from tests.asking import perform
from tests.builders import lora_for
from tests.engine.test_generation import draw, quiet
from tests.engine.test_isolation import failing_once, on_engine
from tests.images import assert_differs, encoded, gradient, pixels
from tests.loras import build, lora
from tests.waiting import LIMIT_S
from worker.app.build import build_worker
from worker.core.device import DeviceInfo
from worker.core.errors import IncompatibleAdapter, InvalidOutput, JobCancelled
from worker.engine import engine as engine_module
from worker.engine.adapters import mixing
from worker.service.local.pace import Paces

_ids = itertools.count()


@pytest.fixture
def batching(settings):
    """A worker that draws three images in one call, and waits for company however busy the machine is."""
    return build_worker(settings.model_copy(update={"batch_size": 3, "batch_timeout_ms": 10_000}))


@pytest.fixture
def alone(settings, worker):
    """Draws a job by itself."""
    return functools.partial(draw, worker)


def assert_same(drawn, alone):
    """As diffusers itself repeats it in a batch: one step of 255 at most, and hardly anywhere."""
    difference = np.abs(drawn.astype(int) - alone)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 5e-4  # of these tiny images' values; over many of them 2e-4, see below


async def together(worker, *jobs):
    return await asyncio.gather(*(draw(worker, **job) for job in jobs))


async def warm(worker):
    """Load the model."""
    await perform(worker, {"action": "preload", "model": "tiny"}, "warm", quiet)


TEXTS = [{"prompt": "red", "seed": 1}, {"prompt": "a green pear beside a blue plum", "seed": 2}, {"seed": 3}]
IMAGES = [
    {**job, "image": encoded(image), "strength": 0.7}
    for job, image in zip(TEXTS, (gradient(64, 64), 255 - gradient(64, 64), gradient(64, 64)[::-1]), strict=True)
]


@pytest.mark.parametrize("model", ["tiny", "tiny-xl", "tiny-sd3", "tiny-flux"])
@pytest.mark.parametrize("jobs", [TEXTS, IMAGES], ids=["text", "image"])
@pytest.mark.quick_rows(1)
async def test_companions_get_the_images_they_would_get_alone(batching, alone, model, jobs):
    jobs = [{**job, "model": model, "width": 64, "height": 64} for job in jobs]
    answers = await together(batching, *jobs)
    assert [answer["timings"]["batch_size"] for answer in answers] == [3, 3, 3]
    for answer, job in zip(answers, jobs, strict=True):
        single = await alone(**job)
        assert single["timings"]["batch_size"] == 1
        assert_same(pixels(answer), pixels(single))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_sde", "ddim", "unipc"])
async def test_whatever_the_scheduler_each_has_its_own_noise(batching, alone, scheduler):
    answers = await together(batching, *({**job, "scheduler": scheduler} for job in TEXTS))
    assert answers[0]["timings"]["batch_size"] == 3
    for answer, job in zip(answers, TEXTS, strict=True):
        assert_same(pixels(answer), pixels(await alone(scheduler=scheduler, **job)))


async def test_jobs_of_one_and_of_several_images_share_a_call(batching, alone):
    one, two = await together(batching, {"prompt": "red", "seed": 1}, {"prompt": "blue", "seed": 5, "num_images": 2})
    assert one["timings"]["batch_size"] == two["timings"]["batch_size"] == 2
    assert_same(pixels(one), pixels(await alone(prompt="red", seed=1)))
    for index in range(2):
        assert_same(pixels(two, index), pixels(await alone(prompt="blue", seed=5 + index)))


@pytest.mark.parametrize("model", ["tiny", "tiny-flux"])
async def test_several_images_from_one_image_are_each_as_if_drawn_alone(worker, model):
    """Left to repeat the image itself, FLUX's pipeline gives the later ones another noise."""
    job = {"model": model, "image": encoded(gradient(64, 64)), "strength": 0.7, "width": 64, "height": 64}
    several = await draw(worker, **job, seed=4, num_images=2)
    for index in range(2):
        assert_same(pixels(several, index), pixels(await draw(worker, **job, seed=4 + index)))


async def test_a_lora_is_shared_by_the_batch_and_kept_from_the_others(batching, alone, zoo):
    styled = [{**job, "loras": [f"file:{zoo}/models/lora.safetensors"]} for job in TEXTS]
    answers = await together(batching, *styled, *TEXTS)
    assert [answer["timings"]["batch_size"] for answer in answers] == [3] * 6
    for answer, job in zip(answers, [*styled, *TEXTS], strict=True):
        assert_same(pixels(answer), pixels(await alone(**job)))
    assert all(answer["loras"][0]["matched"] for answer in answers[:3])


LORAS = {"tiny": "lora", "tiny-xl": "lora-sdxl", "tiny-sd3": "lora-sd3", "tiny-flux": "lora-flux"}


@pytest.fixture(scope="session")
def two_loras(zoo):
    """Two LoRA files for each model."""
    made = {}
    for model, name in LORAS.items():
        folder = zoo / "models" / {"tiny": "sd1"}.get(model, model.removeprefix("tiny-").replace("xl", "sdxl"))
        paths = [zoo / f"models/{name}-{seed}.safetensors" for seed in (5, 6)]
        made[model] = [f"file:{lora_for(folder, path, rank=2 + at, seed=at)}" for at, path in enumerate(paths)]
    return made


@pytest.mark.parametrize("model", LORAS)
@pytest.mark.parametrize("jobs", [TEXTS, IMAGES], ids=["text", "image"])
@pytest.mark.quick_rows(2)
async def test_jobs_with_different_loras_and_without_share_a_call(batching, alone, two_loras, model, jobs):
    first, second = two_loras[model]
    sets = ([{"model": first, "weight": 0.8}], [], [first, {"model": second, "weight": -0.5}])
    jobs = [
        {**job, "model": model, "width": 64, "height": 64, **({"loras": chosen} if chosen else {})}
        for job, chosen in zip(jobs, sets, strict=True)
    ]
    answers = await together(batching, *jobs)
    assert [answer["timings"]["batch_size"] for answer in answers] == [3, 3, 3]
    for answer, job, chosen in zip(answers, jobs, sets, strict=True):
        weights = [item["weight"] if isinstance(item, dict) else 1.0 for item in chosen]
        assert [item["weight"] for item in answer.get("loras", ())] == weights
        single = await alone(**job)
        assert_same(pixels(answer), pixels(single))
        if chosen:
            assert_differs(pixels(single), pixels(await alone(**{**job, "loras": []})))


async def test_a_lora_of_the_text_encoder_changes_its_own_prompt_only(batching, alone, benches, zoo):
    pipe, path = benches("sd1").pipe, zoo / "models/lora-words.safetensors"
    layers = [name for name, _ in pipe.text_encoder.named_modules() if name.endswith(("q_proj", "fc1"))]
    build(pipe, "text_encoder", layers, lora, seed=3).save(path)
    first, second, third = ({**job, "width": 64, "height": 64} for job in TEXTS)
    for prompt, size in (("a plum", 3), ("a (plum:1.4)", 1)):  # weighted ones are read one by one
        jobs = [{**first, "prompt": prompt, "loras": [f"file:{path}"]}, {**second, "prompt": prompt}, third]
        answers = await together(batching, *jobs)
        assert answers[0]["timings"]["batch_size"] == size
        for answer, job in zip(answers, jobs, strict=True):
            assert_same(pixels(answer), pixels(await alone(**job)))
        assert_differs(pixels(answers[0]), pixels(await alone(**{**jobs[0], "loras": []})))


async def test_loras_that_cannot_be_mixed_are_generated_one_after_the_other(batching, alone, two_loras, monkeypatch):
    """A pipeline that calls its denoiser with each image by itself: no row of it is all of the call's."""
    await warm(batching)
    tries = []

    def one_by_one(pipe):
        forward = pipe.unet.forward
        pipe.unet.forward = lambda sample, *rest, **more: tries.append(len(sample)) or forward(sample, *rest, **more)

    on_engine(batching, one_by_one)
    monkeypatch.setattr(mixing, "_LATENTS", ())
    monkeypatch.setattr(mixing.torch, "equal", lambda *_: False)
    jobs = [{**job, "loras": [two_loras["tiny"][at]]} for at, job in zip((0, 1, 0), TEXTS, strict=True)]
    for turn in range(2):
        answers = await together(batching, *jobs)
        assert [answer["timings"]["batch_size"] for answer in answers] == [2, 1, 2]
        for answer, job in zip(answers, jobs, strict=True):
            assert_same(pixels(answer), pixels(await alone(**job)))
        assert 6 not in tries, turn  # the three were never in one call


@pytest.mark.slow
async def test_a_lora_that_does_not_fit_is_one_jobs_error(batching, alone, two_loras, zoo):
    """Its header has the right names; that its tensors have other sizes is seen where they are put on."""
    path = zoo / "models/lora-narrow.safetensors"
    tensors = load_file(two_loras["tiny"][0].removeprefix("file:"))
    save_file({name: tensor[..., :3].contiguous() for name, tensor in tensors.items()}, path)
    sets = ([two_loras["tiny"][0]], [f"file:{path}"], [])
    jobs = [{**job, "loras": chosen} if chosen else job for job, chosen in zip(TEXTS, sets, strict=True)]
    tasks = [asyncio.create_task(draw(batching, **job)) for job in jobs]
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(got[1], IncompatibleAdapter)
    for index in (0, 2):
        assert_same(pixels(got[index]), pixels(await alone(**jobs[index])))


async def test_nan_in_one_image_is_one_jobs_error(batching, alone):
    expected = [pixels(await alone(**job)) for job in TEXTS]

    def spoil_second(pipe):
        decode = pipe.vae.decode

        def spoilt(latents, *args, **kwargs):
            if len(latents) == 3:
                latents[1] = float("nan")
            return decode(latents, *args, **kwargs)

        pipe.vae.decode = spoilt

    await warm(batching)
    on_engine(batching, spoil_second)
    tasks = [asyncio.create_task(draw(batching, **job)) for job in TEXTS]
    got = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [index for index, answer in enumerate(got) if isinstance(answer, InvalidOutput)]
    assert len(failed) == 1
    for index in {0, 1, 2} - set(failed):
        assert_same(pixels(got[index]), expected[index])


async def test_memory_that_runs_out_halves_the_batch_without_loading_again(batching, alone):
    expected = [pixels(await alone(**job)) for job in TEXTS]
    await warm(batching)
    on_engine(batching, lambda pipe: failing_once(pipe, "unet", torch.OutOfMemoryError("CUDA out of memory")))
    answers = await together(batching, *TEXTS)
    assert sorted(answer["timings"]["batch_size"] for answer in answers) == [1, 2, 2]
    assert all(answer["timings"]["load_s"] < 0.05 for answer in answers)
    assert all(answer["warnings"] == [] for answer in answers)
    for answer, alone in zip(answers, expected, strict=True):
        assert_same(pixels(answer), alone)


async def test_a_call_that_breaks_is_repeated_for_each_alone(batching, alone):
    expected = [pixels(await alone(**job)) for job in TEXTS]
    await warm(batching)
    on_engine(batching, lambda pipe: failing_once(pipe, "unet", ValueError("shapes")))
    answers = await together(batching, *TEXTS)
    assert [answer["timings"]["batch_size"] for answer in answers] == [1, 1, 1]
    for answer, alone in zip(answers, expected, strict=True):
        assert np.array_equal(pixels(answer), alone)


async def test_the_plans_memory_bounds_a_call(batching, alone, monkeypatch):
    """On a device where two images fit beside each other, three jobs take two calls, and so does one of three."""
    await warm(batching)
    seen = []
    call = engine_module.call_pipeline

    def watched(pipe, batch, given, emit, at_once, mixture):
        found = call(pipe, batch, given, emit, at_once, mixture)
        seen.append((at_once, len(found)))
        return found

    monkeypatch.setattr(engine_module, "call_pipeline", watched)
    monkeypatch.setattr(engine_module, "images_that_fit", lambda plan, device, megapixels: 2)
    expected = [pixels(await alone(**job)) for job in TEXTS]
    answers = await together(batching, *TEXTS)
    assert sorted(answer["timings"]["batch_size"] for answer in answers) == [1, 2, 2]
    assert seen[-2:] == [(2, 2), (1, 1)]
    for answer, alone in zip(answers, expected, strict=True):
        assert_same(pixels(answer), alone)
    several = await draw(batching, num_images=3, seed=1, prompt="red")  # more than fit, and full by itself
    assert_same(pixels(several), expected[0])


async def running(worker, fields):
    """Tasks of one batch, which is in its steps: earlier one that leaves is not in the call at all."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(progress):
        if progress.phase == "inference":
            loop.call_soon_threadsafe(begun.set)

    jobs = [{"prompt": "a red apple", **job, **fields} for job in TEXTS]
    tasks = [asyncio.create_task(perform(worker, job, f"run-{next(_ids)}", tell)) for job in jobs]
    async with asyncio.timeout(LIMIT_S):
        await begun.wait()
    return tasks


async def test_a_cancelled_companion_takes_nobody_along(batching, alone):
    steps = {"num_inference_steps": 30}
    expected = pixels(await alone(**TEXTS[0], **steps))
    tasks = await running(batching, steps)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert batching.engine.running is not None  # for the others
    assert_same(pixels(await tasks[0]), expected)
    assert (await tasks[2])["timings"]["batch_size"] == 3


async def test_a_batch_that_nobody_wants_any_more_stops_at_its_next_step(batching):
    await warm(batching)
    steps = {"num_inference_steps": 150, "width": 128, "height": 128}
    tasks = await running(batching, steps)
    for task in tasks:
        task.cancel()
    got = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
    assert {type(error) for error in got} <= {asyncio.CancelledError, JobCancelled}
    assert batching.engine.running is None


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_two_hundred_mixed_jobs_are_each_answered_once_with_their_own_image(settings, worker, monkeypatch):
    """Sizes, models and numbers mixed, all at once; every kind of job is drawn alone first."""
    # Nothing is learnt of the seconds of a busy machine, on which jobs may be faster alone.
    monkeypatch.setattr(Paces, "most", lambda paces, kind, bound: bound)
    changes = {"batch_size": 4, "batch_timeout_ms": 2_000, "max_resident_models": 2, "timeout_seconds": 1_800}
    batching = build_worker(settings.model_copy(update=changes))
    kinds = [
        {"model": model, "width": width, "height": 64, "seed": index, "prompt": f"number {index}", "steps": 2, **more}
        for index, (model, width, more) in enumerate(
            itertools.product(("tiny", "tiny-xl", "tiny-sd3"), (64, 80), ({}, {"num_images": 2}, {"seed": 99}))
        )
    ]
    singles = [await draw(worker, **{**kind, "num_images": 1}) for kind in kinds]
    answers = await together(batching, *(kinds[index % len(kinds)] for index in range(200)))
    differing = values = 0
    for index, answer in enumerate(answers):
        kind, single = kinds[index % len(kinds)], singles[index % len(kinds)]
        assert (answer["seed"], answer["model"], answer["prompt"]) == (kind["seed"], kind["model"], kind["prompt"])
        assert len(files_of(answer)) == kind.get("num_images", 1)
        difference = np.abs(pixels(answer).astype(int) - pixels(single))
        assert difference.max() <= 1
        differing += int((difference > 0).sum())
        values += difference.size
    assert differing / values <= 2e-4
    sizes = Counter(answer["timings"]["batch_size"] for answer in answers)
    assert sizes[1] < 40


def test_a_cpu_is_not_asked_how_many_fit():
    from tests.engine.test_plan import plan
    from worker.engine.plan import GIB, images_that_fit

    large = plan("cuda", 24, dtype="float16")
    free = DeviceInfo("cuda", "x", 24 * GIB, 24 * GIB - large.weight_bytes)
    assert images_that_fit(large, free, 1.0) >= 2
    assert images_that_fit(large, free, 0.25) >= 4 * images_that_fit(large, free, 1.0)
    assert images_that_fit(large, DeviceInfo("cuda", "x", 24 * GIB, GIB), 1.0) == 1
    offloaded = plan("cuda", 8, dtype="float16")
    assert images_that_fit(offloaded, DeviceInfo("cuda", "x", 8 * GIB, 8 * GIB), 1.0) == 1
    assert images_that_fit(plan("cpu", 64), DeviceInfo("cpu", "x", 64 * GIB, GIB), 1.0) > 1000
