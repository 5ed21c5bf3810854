"""F12: one job delivered many times is drawn once, and every delivery gets the same bytes."""

import asyncio
import json

from tests.fakes.engine import fresh_id, make_context
from worker.app.queue import build_door

DELIVERIES = 20


async def test_a_job_delivered_twenty_times_is_drawn_once(tmp_path, figures):
    context = make_context(tmp_path)
    door = build_door(context.worker, concurrency=DELIVERIES)
    job = {"id": fresh_id(), "input": {"prompt": "once", "num_images": 2}}  # without a seed: each drawing is another
    context.engine.gate.clear()
    at_once = [asyncio.create_task(door.handle(job)) for _ in range(DELIVERIES // 2)]
    await asyncio.sleep(0.05)
    context.engine.gate.set()
    answers = await asyncio.gather(*at_once)
    answers += [await door.handle(job) for _ in range(DELIVERIES // 2)]
    figures("F12", "drawings of a job that is delivered 20 times", len(context.engine.ran), at_most=1, at_least=1)
    different = {json.dumps(answer, sort_keys=True) for answer in answers}
    figures("F12", "different answers to it", len(different), at_most=1, at_least=1)


async def test_another_input_under_the_same_id_is_another_job(tmp_path, figures):
    context = make_context(tmp_path)
    door = build_door(context.worker, concurrency=2)
    answers = [await door.handle({"id": "same", "input": {"prompt": text, "seed": 1}}) for text in ("one", "two")]
    assert [answer["prompt"] for answer in answers] == ["one", "two"]
    figures("F12", "jobs answered with another job's image", 2 - len(context.engine.ran), at_most=0)
