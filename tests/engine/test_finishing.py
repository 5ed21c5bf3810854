"""All that happens after the model in one job, through the door: refined, enlarged, looked at, put on the volume."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tests import tiny_tasks
from tests.engine.test_safety import classifier
from tests.images import pixels
from tests.upscalers import enlarged, upscaler
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings
from worker.core.errors import OutOfMemory
from worker.engine import engine as engine_module

_ids = itertools.count()
SMALL = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("finishing")
    tiny_tasks.refiner(root / "models/refiner", sdxl=zoo / "models/sdxl")
    upscaler(root / "models/large.safetensors", "compact")
    classifier(root / "models/classifier", unsafe=0.1)
    entries = {
        "base": {
            "source": f"file:{zoo}/models/sdxl",
            "defaults": {"num_inference_steps": 4, "width": 64, "height": 64},
        },
        "refiner": {"source": "file:models/refiner"},
        "large": {"source": "file:models/large.safetensors"},
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))

    def settings(**changes):
        given = {"models_yaml": root / "models.yaml", "default_model": "base", "allowed_model_dirs": (zoo, root)}
        return Settings(**given, volume_dir=root / "volume", device="cpu", warm_up=False, **changes)

    return settings


async def handle(worker, **fields):
    door = build_door(worker, concurrency=1)
    return await door.handle({"id": f"finish-{next(_ids)}", "input": {**SMALL, **fields}})


async def test_everything_at_once_and_nothing_left_for_the_next_job(shop):
    checker = f"file:{shop().models_yaml.parent}/models/classifier"
    worker = build_worker(shop(max_resident_models=2, safety_checker=checker, safety_action="black"))
    before = await handle(worker)
    # Words that every job with them wants in its images: where only some do, they are private.
    shown = {"prompt": "a door of green glass", "refiner": "refiner", "output": {"metadata": True}}
    refined = await handle(worker, **shown)
    answer = await handle(
        worker,
        **shown | {"output": {"metadata": True, "delivery": "volume"}},
        upscale={"model": "large"},
        num_images=2,
    )
    assert "error" not in answer, answer
    drawn = [Image.open(shop().volume_dir / place) for place in answer["images"]]
    assert np.array_equal(np.asarray(drawn[0]), enlarged("compact", pixels(refined)))
    assert [item["flagged"] for item in answer["safety"]] == [False, False]
    assert f"Seed: {answer['seeds'][1]}, Size: 256x256" in drawn[1].text["parameters"]
    again = await handle(worker, **json.loads(drawn[1].text["generation"])["input"] | {"output": {"metadata": True}})
    assert np.array_equal(pixels(again), np.asarray(drawn[1]))
    assert len(worker.engine.resident_models) == 3  # an upscaler evicts no pipeline
    assert np.array_equal(pixels(await handle(worker)), pixels(before))


async def test_models_that_do_not_fit_together_take_turns(shop, monkeypatch):
    worker = build_worker(shop(max_resident_models=3))
    expected = pixels(await handle(worker, refiner="refiner"))
    plan = engine_module.make_plan

    def small_device(*args, **options):
        if worker.engine.resident_models:
            raise OutOfMemory("No room beside the others.", field="model")
        return plan(*args, **options)

    await worker.operations.device.unload("refiner")
    monkeypatch.setattr(engine_module, "make_plan", small_device)
    answer = await handle(worker, refiner="refiner")
    assert np.array_equal(pixels(answer), expected)
    assert worker.engine.resident_models == ["refiner"]


@pytest.mark.parametrize("field", ["refiner", "upscale"])
async def test_one_that_cannot_be_had_is_a_sentence_with_its_field(shop, field):
    worker = build_worker(shop())
    answer = await handle(worker, **{field: "org/nowhere"})
    assert (answer["code"], answer["field"]) == ("model_not_found", field)
    assert not worker.engine.ready


async def test_an_upscaler_is_inspected_and_planned_like_any_model(shop):
    worker = build_worker(shop())
    door = build_door(worker, concurrency=1)
    seen = await door.handle({"id": "i", "input": {"action": "inspect", "model": "large"}})
    assert (seen["kind"], seen["tasks"], seen["variant"]) == ("upscaler", ["upscaling"], "ESRGAN")
    plan = await door.handle({"id": "p", "input": {"action": "plan", "model": "large"}})
    assert plan["fits"]
    assert plan["offload"] == "none"
    loaded = await door.handle({"id": "l", "input": {"action": "preload", "model": "large"}})
    assert loaded["resident"]
