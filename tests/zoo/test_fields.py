"""Every field of every class's schema: taken by its own pipeline, and refused by name by all that do not list it."""

import asyncio
import json
import logging
import random
from pathlib import Path

import pytest

from tests.asking import perform
from tests.zoo import RECIPES
from tests.zoo.fields import check_fields
from tests.zoo.plain import quiet, runs_here
from tests.zoo.served import ServedZoo
from worker.catalog.classes.signatures import DENIED
from worker.catalog.interface.parameters import parameters
from worker.catalog.interface.request_fields import common_fields
from worker.core.errors import UnknownParameter

# Of each way that a request reaches a pipeline one that runs in a second.
OFTEN = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "AnimateDiffPipeline",
    "LTXPipeline",
    "GlmImagePipeline",
    "ZImageOmniPipeline",
)
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_WHOLE = [recipe for recipe in RECIPES if runs_here(recipe)]


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def field_zoo(tmp_path_factory: pytest.TempPathFactory) -> ServedZoo:
    return ServedZoo(tmp_path_factory.mktemp("fields"))


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", OFTEN)
def test_every_field_of_the_schema_is_taken_by_the_pipeline(field_zoo: ServedZoo, name: str):
    report = check_fields(field_zoo, _RECIPES[name], field_zoo.root / name)
    assert report.problems == []
    assert report.fields > 15


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_field_of_every_schema_is_taken_by_its_pipeline(field_zoo: ServedZoo):
    reports = [check_fields(field_zoo, recipe, field_zoo.root / recipe.pipeline) for recipe in _WHOLE]
    told = {report.pipeline: report.problems for report in reports if report.problems}
    assert told == {}, json.dumps(told, indent=1)


@pytest.mark.slow
def test_a_field_of_other_families_is_refused_by_name_before_anything_is_loaded(field_zoo: ServedZoo):
    """The repositories hold nothing but the name of their class: whatever were loaded would fail otherwise."""
    worker, dice = field_zoo.worker, random.Random(0)
    before = worker.engine.resident_models
    taken = {recipe.pipeline: _parameters(worker, _bare(field_zoo.root, recipe.pipeline)) for recipe in _WHOLE}
    known = sorted(set().union(*taken.values()))

    async def refused(folder: Path, name: str) -> None:
        payload = {**_RECIPES[folder.name].fields(), "model": f"file:{folder}", name: 1}
        with pytest.raises(UnknownParameter) as error:
            await perform(worker, payload, f"{folder.name}-{name}", lambda progress: None)
        assert (error.value.field, name in error.value.message) == (name, True)

    async def all_refused() -> None:
        for pipeline, own in taken.items():
            for name in dice.sample([name for name in known if name not in own], 3):
                await refused(field_zoo.root / "bare" / pipeline, name)

    asyncio.run(all_refused())
    assert len(taken) > 200
    assert worker.engine.resident_models == before


def _bare(root: Path, pipeline: str) -> Path:
    folder = root / "bare" / pipeline
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.42.1"}))
    return folder


def _parameters(worker, folder: Path) -> set[str]:
    model = worker.resolver.known(worker.resolver.resolve(f"file:{folder}"))
    found = {name for call in model.calls for name in parameters(call)}
    return {name for name in found if name not in common_fields() and not DENIED.fullmatch(name)}
