"""Two hundred callers at once at the real HTTP server, which takes fewer than that and draws them in batches."""

import asyncio
import itertools
import random
from collections import Counter

import aiohttp
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.answers import files_of
from tests.contract.test_standalone import start, until_ready
from tests.images import pixels

CALLERS = 200
TAKEN = {"MAX_CONCURRENT_JOBS": "32", "MAX_QUEUED_JOBS": "48"}
BATCHES = {"BATCH_SIZE": "4", "BATCH_TIMEOUT_MS": "50", "MAX_RESIDENT_MODELS": "2"}


@pytest.fixture
def served(zoo, tmp_path):
    models = {"MODELS_YAML": str(zoo / "models.yaml"), "DEFAULT_MODEL": "tiny"}
    with start(tmp_path, **models, **BATCHES, **TAKEN) as worker:
        until_ready(worker)
        yield worker


def mixed_jobs():
    """As many jobs as callers, in a mixed order. Every tenth comes from two callers under one key."""
    shapes = itertools.product(("tiny", "tiny-xl", "tiny-sd3"), (64, 80), (1, 2))
    jobs = [
        {"model": model, "width": width, "height": 64, "num_images": images, "num_inference_steps": 2}
        | {"prompt": f"number {index}", "seed": 10 * index}
        for index, (model, width, images) in zip(range(CALLERS), itertools.cycle(shapes), strict=False)
    ]
    for index in range(0, CALLERS, 10):
        jobs[index + 1] = jobs[index]
    random.Random(0).shuffle(jobs)
    return jobs


async def ask(session, path, job, statuses):
    """The one answer to `job`, however often the server asks to come again."""
    headers = {"Idempotency-Key": job["prompt"]}
    while True:
        async with session.post(path, json=job, headers=headers) as answer:
            statuses[answer.status] += 1
            body = await answer.json()
            if answer.status != 429:
                assert answer.status == 200, body
                return body
            wait_s = int(answer.headers["Retry-After"])
            assert (body["code"], body["details"]["retry_after_s"]) == ("overloaded", wait_s)
        assert 1 <= wait_s <= 60
        await asyncio.sleep(wait_s)


async def images_drawn(session):
    async with session.get("/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    return sum(item.value for family in families for item in family.samples if item.name == "imgworker_images_total")


@pytest.mark.slow
async def test_two_hundred_callers_are_each_answered_once_with_the_image_of_a_serial_run(served):
    jobs, statuses = mixed_jobs(), Counter()
    distinct = {job["prompt"]: job for job in jobs}
    everybody = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(served.origin, connector=everybody) as session:
        paths = itertools.cycle(("/run", "/runsync"))
        async with asyncio.timeout(120):
            asked = (ask(session, path, job, statuses) for path, job in zip(paths, jobs, strict=False))
            answers = await asyncio.gather(*asked)
        assert set(statuses) == {200, 429}
        assert statuses[200] == CALLERS
        assert await images_drawn(session) == sum(job["num_images"] for job in distinct.values())
        async with session.get("/health") as answer:
            status = (await answer.json())["status"]
        assert status == "ready"

        for answer, job in zip(answers, jobs, strict=True):
            assert {name: answer[name] for name in ("model", "prompt", "seed")}.items() <= job.items()
            assert len(files_of(answer)) == job["num_images"]
        by_prompt = {answer["prompt"]: answer for answer in answers}
        assert all(files_of(answer) == files_of(by_prompt[answer["prompt"]]) for answer in answers)
        assert Counter(answer["timings"]["batch_size"] for answer in answers)[1] < CALLERS / 2

        sample = sorted(random.Random(1).sample(sorted(distinct), 48), key=lambda prompt: distinct[prompt]["model"])
        differing = values = 0
        for job in (distinct[prompt] for prompt in sample):
            last = job["num_images"] - 1
            single = job | {"seed": job["seed"] + last, "num_images": 1}
            async with session.post("/run", json=single) as answer:
                alone = await answer.json()
            assert alone["timings"]["batch_size"] == 1
            difference = np.abs(pixels(by_prompt[job["prompt"]], last).astype(int) - pixels(alone))
            assert difference.max() <= 1
            differing += np.count_nonzero(difference)
            values += difference.size
    assert differing / values <= 2e-4
