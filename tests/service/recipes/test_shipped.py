"""The recipes that are shipped: each gives the very pixels of its steps done by hand."""

import pytest

from tests.answers import files_of
from tests.asking import perform
from tests.images import assert_differs, encoded, gradient, pixels
from tests.service.recipes.by_hand import SHIPPED, decoded, done_by_hand, moving
from worker.app.build import build_worker
from worker.app.settings import Settings

# What each is sent, beside a seed.
SENT = {
    "detailed": {"prompt": "a red apple"},
    "greyed": {"image": encoded(gradient(64, 64)), "weight": 0.8},
    "pair": {"prompt": "a red apple", "second": "a green apple"},
    "poster": {"thing": "star", "colour": "yellow"},
    "redrawn": {"prompt": "a red apple", "strength": 0.6},
    "refined": {"prompt": "a blue fish", "negative_prompt": "red", "guidance_scale": 3},
    "replaced": {
        "prompt": "a cat face",
        "image": encoded(gradient(64, 64)),
        "mask_image": encoded(gradient(64, 64)[:, :, :1].repeat(3, axis=2)),
    },
    "stamped": {"prompt": "a red heart", "motif": "a green leaf"},
    "traced": {"prompt": "a red flower"},
    "variations": {"prompt": "a red apple", "num_images": 3},
    "widened": {"image": encoded(gradient(64, 64)), "margin": 16},
    "moving": {"prompt": "a red apple", "video": moving(3, 64), "output": {"format": "png"}},
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    return build_worker(Settings(volume_dir=root, device="cpu", recipes=SHIPPED))


def test_there_are_twelve_and_each_is_sent_something(worker):
    assert len(worker.registry.recipes) == 12
    assert {*worker.registry.recipes} == {*SENT}


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", SENT)
async def test_a_recipe_equals_its_steps_done_by_hand(worker, name):
    sent = SENT[name] | {"seed": 11}
    answer = await perform(worker, {"model": name, **sent}, name)
    by_hand = await done_by_hand(worker, SHIPPED / f"{name}.yaml", sent)
    assert [decoded(file).tobytes() for file in files_of(answer)] == [decoded(file).tobytes() for file in by_hand]
    assert {*answer["seeds"]} == {11}
    assert (answer["model"], answer["seed"]) == (name, 11)
    assert [step["step"] for step in answer["steps"]] == [step.name for step in worker.registry.recipes[name].steps]
    assert answer["usage"]["pixel_steps"] == sum(step["usage"]["pixel_steps"] for step in answer["steps"])


@pytest.mark.slow
async def test_an_input_changes_the_image_and_the_answer_says_how_to_have_it_again(worker):
    one = await perform(worker, {"model": "poster", "seed": 3})
    other = await perform(worker, {"model": "poster", "seed": 3, "colour": "blue"})
    assert_differs(pixels(one), pixels(other))
    assert files_of(await perform(worker, other["reproduce"]["input"])) == files_of(other)
