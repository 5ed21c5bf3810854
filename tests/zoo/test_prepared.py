"""Classes that are called more than once for an image: what a request says reaches the call that it is for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.asking import on_one_loop, perform
from tests.zoo import RECIPES
from tests.zoo.plain import first_medium, load, quiet
from tests.zoo.recipe import Image
from tests.zoo.served import ServedZoo, answered

_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_MASK = {"target_prompt": "a plum", "mask_encode_strength": 0.7, "mask_thresholding_ratio": 1.2}
_NOISE = {"num_reg_steps": 1, "num_auto_corr_rolls": 1, "lambda_auto_corr": 5.0, "lambda_kl": 5.0}


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> ServedZoo:
    return ServedZoo(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("said", [{}, _MASK, _NOISE, {"inpaint_strength": 0.5}], ids=lambda said: "-".join(said))
@pytest.mark.quick_rows(1)
def test_diffedit_draws_what_its_three_calls_draw_with_the_same_words(zoo: ServedZoo, said: Mapping[str, Any]):
    recipe, folder = _RECIPES["StableDiffusionDiffEditPipeline"], zoo.root / "diffedit"
    assert zoo.run(recipe, folder).ran
    payload = {**recipe.fields(), **said, "model": f"file:{folder}", "seed": 0}
    answer = on_one_loop(perform(zoo.worker, payload, str(said), lambda progress: None))
    assert np.array_equal(answered(answer), _direct(folder, {"mask_thresholding_ratio": 1.0, **said}))


def _direct(folder: Path, said: Mapping[str, Any]) -> np.ndarray:
    pipeline = load(_RECIPES["StableDiffusionDiffEditPipeline"], folder)
    image, generator = Image().draw(), torch.Generator("cpu").manual_seed(0)
    strength = {name: value for name, value in said.items() if name == "inpaint_strength"}
    shared = {"num_inference_steps": 4, "generator": generator}
    words = {"source_prompt": "an apple", "target_prompt": "a pear", **{key: said[key] for key in _MASK.keys() & said}}
    mask = pipeline.generate_mask(image=image, **words, **shared)
    noise = {key: said[key] for key in _NOISE.keys() & said}
    latents = pipeline.invert(prompt="an apple", image=image, **strength, **noise, **shared).latents
    return first_medium(pipeline("a pear", mask_image=mask, image_latents=latents, **strength, **shared))
