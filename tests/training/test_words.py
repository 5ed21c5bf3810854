"""Words, text encoders and classes: what learns beside the denoiser, and what stays as it was."""

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.asking import perform
from tests.images import encoded, pixels
from worker.app.build import build_worker
from worker.app.settings import Settings

GROUND = "on a white background"
FEW = {"action": "train", "model": "tiny", "steps": 3, "save_every": 100, "learning_rate": 0.02}


def sent(images):
    return [base64.b64encode(file.read_bytes()).decode() for file in sorted(images.glob("*.png"))]


@pytest.fixture
def trains(settings):
    return build_worker(settings.model_copy(update={"training": "shared"}))


@pytest.fixture
def demo(tmp_path) -> object:
    """The demo model, on one thread."""
    return build_worker(Settings(volume_dir=tmp_path / "volume", device="cpu", warm_up=False, training="shared"))


def apart(one, others):
    """The mean squares between an image and the nearest of others."""
    return min(((one.astype(float) - other) ** 2).mean() for other in others)


async def test_a_word_and_nothing_else_is_learnt_and_told_by_its_name(trains, images):
    job = FEW | {"data": sent(images), "method": "embedding", "trigger": "<thing>", "vectors": 2, "name": "thing"}
    answer = await perform(trains, job | {"samples": ["a <thing>"]})
    assert answer["use"] == {"embeddings": ["thing"]}
    plain = await perform(trains, {"prompt": "a <thing>", "seed": 0}, "a")
    mine = await perform(trains, {"prompt": "a <thing>", "seed": 0, "embeddings": ["thing"]}, "b")
    assert mine["adapters"][0]["tokens"] == ["<thing>"]
    assert (pixels(mine) != pixels(plain)).any()
    sample = Path(trains.settings.volume / "trained/thing/samples/step-000003-1.png")
    assert np.array_equal(np.asarray(Image.open(sample).convert("RGB")), pixels(mine)), "the sample is what is served"


async def test_a_text_encoder_learns_with_the_denoiser_and_both_land(trains, images):
    job = FEW | {
        "data": sent(images),
        "caption": "a red apple",
        "text_encoder": True,
        "name": "both",
        "model": "tiny-xl",
        "rank": 2,
    }
    await perform(trains, job)
    for name in ("both", f"file:{trains.settings.volume}/trained/both/both-kohya.safetensors"):
        request = {"model": "tiny-xl", "prompt": "a red apple", "seed": 0, "width": 64, "height": 64, "loras": [name]}
        drawn = await perform(trains, request, name)
        (lora,) = drawn["loras"]
        assert lora["matched"] == lora["total"], lora["unmatched"]


async def test_images_of_the_class_are_those_that_serving_draws(trains, images):
    job = FEW | {"data": sent(images), "class_prompt": "a thing", "class_images": 2, "name": "one"}
    told = []
    await perform(trains, job | {"minutes": 1e-6}, "a", told.append)
    assert [each.step for each in told if each.message == "images of the class"] == [0, 1]
    for index in range(2):
        drawn = await perform(trains, {"prompt": "a thing", "seed": index}, f"c{index}")
        kept = trains.settings.volume / f"trained/one/class/000{index}.png"
        assert np.array_equal(np.asarray(Image.open(kept).convert("RGB")), pixels(drawn))
    told.clear()
    answer = await perform(trains, job, "b", told.append)
    assert (answer["resumed_at"], answer["done"]) == (1, True)
    assert not [each for each in told if each.message == "images of the class"], "they were there"


@pytest.mark.slow
async def test_a_new_word_draws_its_thing_on_the_demo_model(demo):
    things = [
        pixels(await perform(demo, {"prompt": f"a purple robot {GROUND}", "seed": seed}, f"t{seed}"))
        for seed in range(6)
    ]
    data = [{"image": encoded(each), "caption": f"a <mine> {GROUND}"} for each in things]
    job = {
        **{"action": "train", "data": data, "method": "embedding", "trigger": "<mine>", "like": "cat", "name": "mine"},
        **{"steps": 60, "batch_size": 3, "learning_rate": 0.02, "save_every": 1_000},
    }
    await perform(demo, job)
    cats, mine = [], []
    for seed in range(50, 54):
        prompt = {"prompt": f"a cat {GROUND}", "seed": seed}
        cats.append(apart(pixels(await perform(demo, prompt, f"c{seed}")), things))
        word = {"prompt": f"a <mine> {GROUND}", "seed": seed, "embeddings": ["mine"]}
        mine.append(apart(pixels(await perform(demo, word, f"m{seed}")), things))
    assert np.mean(mine) < np.mean(cats) / 2


@pytest.mark.slow
async def test_a_class_stays_what_it_was_where_its_images_are_learnt_beside_the_subject(demo):
    async def robots(name, **fields):
        asked = {"prompt": f"a robot {GROUND}", **fields}
        return [pixels(await perform(demo, asked | {"seed": seed}, f"{name}{seed}")).astype(float) for seed in (70, 71)]

    purple = [
        pixels(await perform(demo, {"prompt": f"a purple robot {GROUND}", "seed": seed}, f"p{seed}"))
        for seed in range(4)
    ]
    data = [{"image": encoded(each), "caption": f"a sks robot {GROUND}"} for each in purple]
    job = {"action": "train", "data": data, "learning_rate": 0.003, "steps": 30, "rank": 4, "save_every": 100}
    await perform(demo, job | {"name": "alone"})
    kept = {"class_prompt": f"a robot {GROUND}", "class_images": 4}
    await perform(demo, job | kept | {"name": "beside"})
    before = await robots("before")
    drift = {}
    for name in ("alone", "beside"):
        after = await robots(name, loras=[name])
        drift[name] = np.mean([np.abs(one - other).mean() for one, other in zip(before, after, strict=True)])
    subject = pixels(await perform(demo, {"prompt": f"a sks robot {GROUND}", "seed": 72, "loras": ["beside"]}, "s"))
    plain = pixels(await perform(demo, {"prompt": f"a sks robot {GROUND}", "seed": 72}, "n"))
    others = {
        thing: [
            pixels(await perform(demo, {"prompt": f"{thing} {GROUND}", "seed": seed}, f"{thing}{seed}"))
            for seed in (80, 81)
        ]
        for thing in ("a robot", "a red robot", "a cat", "a red apple", "a purple octopus", "a blue car")
    }
    recognised = []
    for seed in range(72, 76):
        asked = {"prompt": f"a sks robot {GROUND}", "seed": seed, "loras": ["beside"]}
        image = pixels(await perform(demo, asked, f"r{seed}"))
        known = others | {"the subject": purple}
        recognised.append(min(known, key=lambda name: apart(image, known[name])))
    assert recognised == ["the subject"] * 4
    assert drift["beside"] < drift["alone"] * 0.8
    assert apart(subject, purple) < apart(plain, purple) * 0.8
