"""Text encoders that are fetched layer by layer, the CPU standing in for the device: the same images, and told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.asking import perform
from tests.engine.levers.test_switching import FAMILIES
from tests.engine.test_precision import of_a_plan
from tests.images import pixels
from tests.zoo import RECIPES, plain
from worker.core.precision import is_encoder
from worker.engine import engine
from worker.engine.loader import place


def fetched(pipe):
    """The layers of a pipeline whose weights come and go, by component."""
    layers = {}
    for name, part in pipe.components.items():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            hooks = vars(module).get("_diffusers_hook")
            if hooks is not None and any("group_offloading" in hook for hook in hooks.hooks):
                layers.setdefault(name, []).append(module)
    return layers


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_that_are_fetched_by_layers_generate_the_same_image(name):
    recipe = next(recipe for recipe in RECIPES if recipe.pipeline == name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = recipe.build().to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    whole = plain.draw(recipe, pipe)
    place(pipe, replace(of_a_plan(None, "fp32"), offload="group"))
    layers = fetched(pipe)
    assert {*layers} == {name for name in pipe.components if is_encoder(name)}
    assert all(len(modules) > 5 for modules in layers.values())
    assert np.array_equal(plain.draw(recipe, pipe), whole)
    assert np.array_equal(plain.draw(recipe, pipe), whole)


async def test_jobs_of_every_kind_are_as_without_it_and_their_results_tell(settings, worker, zoo, monkeypatch):
    from worker.app.build import build_worker

    real = engine.make_plan
    lora = [f"file:{zoo}/models/lora.safetensors"]
    kinds = [{}, {"loras": lora}, {"prompt": "a (red:1.4) apple"}, {"clip_skip": 1}, {}]
    plainly = [await draw(worker, f"plain {index}", **fields) for index, fields in enumerate(kinds)]
    monkeypatch.setattr(engine, "make_plan", lambda *a, **k: replace(real(*a, **k), offload="group"))
    other = build_worker(settings)
    answers = [await draw(other, f"group {index}", **fields) for index, fields in enumerate(kinds)]
    for answer, whole in zip(answers, plainly, strict=True):
        # A LoRA is in hooks on what comes and goes, and in copies of the weights on what stays.
        assert np.abs(pixels(answer).astype(int) - pixels(whole).astype(int)).max() <= (1 if answer["loras"] else 0)
        assert (answer["offload"], "offload" in whole) == ("group", False)


async def draw(worker, job, **fields):
    return await perform(worker, {"prompt": "a red apple", "seed": 7, **fields}, job, lambda progress: None)
