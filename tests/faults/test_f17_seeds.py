"""F17: the same image from the same seed: image i of n is the job with `seed + i` alone, bit by bit on a CPU."""

import asyncio

import numpy as np
import pytest

from tests.engine.test_generation import draw
from tests.images import encoded, gradient, pixels
from worker.app.build import build_worker

JOBS = {
    "text": {},
    "image": {"image": encoded(gradient(64, 64)), "strength": 0.7},
    "own noise": {"scheduler": "euler_a"},
    "odd size": {"width": 80, "height": 64},
}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("model", "job"),
    [(model, "text") for model in ("tiny", "tiny-xl", "tiny-sd3", "tiny-flux")]
    + [("tiny", job) for job in JOBS if job != "text"],
)
async def test_image_i_of_n_is_bit_equal_to_its_seed_alone(worker, model, job, figures):
    fields = {"model": model, "width": 64, "height": 64, **JOBS[job], "seed": 40}
    several = await draw(worker, **fields, num_images=4)
    values = 0
    for index in range(4):
        alone = await draw(worker, **fields | {"seed": 40 + index})
        values += int((pixels(several, index) != pixels(alone)).sum())
    figures("F17", f"values of 4 images that differ from their seeds alone, {model}, {job}", values, at_most=0)


async def test_what_the_answer_says_replays_every_image_in_another_worker(worker, settings, figures):
    first = await draw(worker, num_images=3, scheduler="dpmpp_2m_karras")
    again = await draw(build_worker(settings), **first["reproduce"]["input"])
    for index in range(3):
        differ = int((pixels(first, index) != pixels(again, index)).sum())
        figures("F17", f"values that differ after a restart, image {index}", differ, at_most=0)


async def test_jobs_of_several_callers_in_one_call_stay_within_a_step(settings, worker, figures):
    """The operator's choice (BATCH_SIZE): as near as diffusers itself repeats an image in a batch."""

    batching = build_worker(settings.model_copy(update={"batch_size": 4, "batch_timeout_ms": 10_000}))
    answers = await asyncio.gather(*(draw(batching, prompt=f"thing {seed}", seed=seed) for seed in range(4)))
    assert [answer["timings"]["batch_size"] for answer in answers] == [4] * 4
    most = share = 0.0
    for seed, answer in enumerate(answers):
        alone = pixels(await draw(worker, prompt=f"thing {seed}", seed=seed)).astype(int)
        difference = np.abs(alone - pixels(answer))
        most, share = max(most, difference.max()), max(share, float((difference > 0).mean()))
    figures("F17", "steps of 255 between a shared call and a call alone", most, at_most=1)
    figures("F17", "share of values that differ between them", share, at_most=5e-4)
