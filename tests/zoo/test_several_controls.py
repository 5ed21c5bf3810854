"""A repository that holds several ControlNets, asked as a caller would: each has its image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel

from tests.asking import on_one_loop, perform
from tests.builders import enliven_control
from tests.zoo.families.controlnet import with_controlnet
from tests.zoo.families.stable_diffusion import sd1
from tests.zoo.plain import draw, quiet
from tests.zoo.recipe import Image, Recipe, on_the_wire
from tests.zoo.served import answered, zoo_worker
from worker.core.errors import InvalidRequest

_SIZED = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_IMAGES = [Image(), Image(seed=1)]


def _parts() -> dict:
    nets = [with_controlnet(sd1())["controlnet"] for _ in range(2)]
    return {**sd1(), "controlnet": MultiControlNetModel(nets)}


def test_a_job_draws_with_all_controlnets_of_a_repository(tmp_path: Path):
    quiet()
    recipe = Recipe(
        "StableDiffusionControlNetPipeline",
        _parts,
        {**_SIZED, "control_images": _IMAGES},
        call={**_SIZED, "image": _IMAGES},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = recipe.build()
        enliven_control(pipeline.controlnet)
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    worker = zoo_worker(tmp_path)
    asked = {**recipe.fields(), "model": f"file:{folder}", "seed": 0, "output": {"format": "png"}}
    served = answered(on_one_loop(perform(worker, asked)))
    assert np.array_equal(served, draw(recipe, pipeline))

    other = {**asked, "control_images": on_the_wire(_IMAGES[::-1])}
    assert not np.array_equal(answered(on_one_loop(perform(worker, other, "other"))), served)
    with pytest.raises(InvalidRequest, match="control_images") as error:
        on_one_loop(perform(worker, {**asked, "control_images": on_the_wire(_IMAGES[:1])}, "one"))
    assert error.value.field == "control_images"
