"""What a model's schema takes at its edges does not fail in the pipeline: every class, the same requests each time."""

from pathlib import Path

import pytest

from tests.zoo import RECIPES
from tests.zoo.edges import failures
from tests.zoo.modular import MODULAR
from tests.zoo.plain import quiet, runs_here
from tests.zoo.recipe import Recipe
from tests.zoo.served import ServedZoo

# Classes of which only the tiny model fails, and why.
_TINY = {
    "HiDreamImagePipeline": "draws a million pixels, and the tiny model has places for 64 of its tokens",
    "StableDiffusionAttendAndExcitePipeline": "reads maps of two halvings, and the tiny model has one",
}


@pytest.fixture
def zoo(tmp_path: Path) -> ServedZoo:
    return ServedZoo(tmp_path)


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in (*RECIPES, *MODULAR) if runs_here(recipe) and recipe.pipeline not in _TINY],
    ids=lambda recipe: recipe.pipeline,
)
def test_what_the_schema_takes_does_not_fail(zoo: ServedZoo, recipe: Recipe):
    quiet()
    drawn, failed = failures(zoo, recipe, Path(zoo.root / recipe.pipeline))
    assert not failed, "\n".join(failed)
    assert drawn > 0
