"""What worker/catalog/interface/pipeline_schedulers.json says each pipeline class runs with is what it runs with."""

import json
import logging
from pathlib import Path

import pytest

from tests.zoo import RECIPES
from tests.zoo.plain import quiet
from tests.zoo.recipe import Recipe
from tests.zoo.schedulers import Measured, measure
from worker.catalog.interface.sampling import FILE

# One of each outcome that is not everybody's: two pipelines in one, a flow that gives its own sigmas …
OFTEN = ("KandinskyV22CombinedPipeline", "FluxControlPipeline", "StableDiffusionDiffEditPipeline")
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_GROUPS = json.loads(FILE.read_text(encoding="utf-8"))["groups"]
_TABLE = {
    name: Measured(name, group["noise"], tuple(group["runs"]), tuple(group["shifts"]))
    for group in _GROUPS
    for name in group["pipelines"]
}


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)


def test_the_table_names_classes_that_the_zoo_has():
    assert set(_TABLE) <= set(_RECIPES)
    assert sum(len(group["pipelines"]) for group in _GROUPS) == len(_TABLE)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", OFTEN)
def test_a_class_runs_with_what_the_table_says(name: str, tmp_path: Path):
    assert measure(_RECIPES[name], tmp_path) == _TABLE[name]


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.pipeline)
def test_every_class_runs_with_what_the_table_says(recipe: Recipe, tmp_path: Path):
    """One that cannot be built here, for want of a package, is not in the table."""
    if recipe.pipeline in _TABLE:
        assert measure(recipe, tmp_path) == _TABLE[recipe.pipeline]
