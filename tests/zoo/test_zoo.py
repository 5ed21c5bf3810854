"""Every pipeline class of diffusers that makes images or videos of text or images: plain, then by the worker."""

import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers import DiffusionPipeline

from tests.zoo import RECIPES
from tests.zoo.excluded import EXCLUDED
from tests.zoo.plain import Outcome, quiet, run_plain
from tests.zoo.recipe import Recipe
from tests.zoo.served import ServedZoo

PROJECT = Path(__file__).resolve().parents[2]

# One or two of each kind: a text encoder, denoiser, autoencoder, input or output that no other of these has.
OFTEN = (
    "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLControlNetUnionPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionGLIGENPipeline",
    "LEditsPPPipelineStableDiffusion",
    "KandinskyV22InpaintCombinedPipeline",
    "PixArtSigmaPAGPipeline",
    "AmusedPipeline",
    "IFSuperResolutionPipeline",
    "MarigoldDepthPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
    "StableVideoDiffusionPipeline",
    "FluxControlNetPipeline",
    "QwenImageControlNetInpaintPipeline",
    "SanaSprintPipeline",
    "ZImagePipeline",
    "CogVideoXImageToVideoPipeline",
    "WanVACEPipeline",
)
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)


def test_every_class_of_the_installed_diffusers_was_looked_at():
    """A new release of diffusers turns this red until its new classes have a recipe or a reason to have none."""
    assert _exported() == set(_RECIPES) | set(EXCLUDED)
    assert not set(_RECIPES) & set(EXCLUDED)


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repositories")


@pytest.fixture(scope="module")
def served_zoo(zoo_folder: Path) -> ServedZoo:
    return ServedZoo(zoo_folder)


@pytest.mark.parametrize("recipe", [_RECIPES[name] for name in OFTEN], ids=OFTEN)
@pytest.mark.quick_rows(4)
def test_plain_diffusers_and_the_worker_run_the_recipe(recipe: Recipe, zoo_folder: Path, served_zoo: ServedZoo):
    plain = run_plain(recipe, zoo_folder / recipe.pipeline)
    served = served_zoo.run(recipe, zoo_folder / recipe.pipeline)
    assert (_problem(recipe, plain), served.error) == (None, "")
    assert served.shape[-3:-1] == plain.shape[-3:-1]


@pytest.fixture(scope="module")
def plain_outcomes(zoo_folder: Path) -> list[Outcome]:
    """What plain diffusers makes of every recipe; the repositories stay where the worker may find them.

    In a process of its own: a worker that ran in this one has made old classes reachable, for plain diffusers too.
    """
    report = zoo_folder / "plain.json"
    command = [sys.executable, "-m", "tests.zoo", "plain", "--keep", str(zoo_folder), "--report", str(report)]
    subprocess.run(command, cwd=PROJECT, check=False, stdout=subprocess.DEVNULL)
    outcomes = json.loads(report.read_text())["plain"]
    return [Outcome(**outcomes[recipe.pipeline]) for recipe in RECIPES]


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_plain_diffusers_runs_what_the_recipes_say(plain_outcomes: list[Outcome]):
    problems = [_problem(recipe, outcome) for recipe, outcome in zip(RECIPES, plain_outcomes, strict=True)]
    assert [problem for problem in problems if problem] == []


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_worker_runs_what_plain_diffusers_runs(
    zoo_folder: Path, served_zoo: ServedZoo, plain_outcomes: list[Outcome]
):
    """At least 95 % of the classes. What it does not run is refused with a sentence, and named in docs/models.md."""
    answers = {recipe.pipeline: served_zoo.run(recipe, zoo_folder / recipe.pipeline) for recipe in RECIPES}
    able = [outcome.pipeline for outcome in plain_outcomes if outcome.ran]
    refused = {name: answers[name].error for name in able if not answers[name].ran}
    told = "\n".join(f"{name}: {error}" for name, error in refused.items())
    assert len(refused) <= 0.05 * len(able), f"{len(refused)} of {len(able)} are refused:\n{told}"
    assert [name for name, answer in answers.items() if answer.error.startswith("unforeseen")] == []
    documented = (PROJECT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [name for name in refused if name not in documented] == []


def _problem(recipe: Recipe, outcome: Outcome) -> str | None:
    """What is wrong: it should run and does not, or the recipe says why it cannot and it does."""
    if recipe.broken is None and not outcome.missing:
        return None if outcome.ran else f"{recipe.pipeline}: {outcome.error}"
    return (
        f"{recipe.pipeline} runs, though its recipe says: {recipe.broken or outcome.missing}" if outcome.ran else None
    )


def _exported() -> set[str]:
    """The names of all pipeline classes, with those that diffusers replaces by a dummy for want of a package."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if "Pipeline" in name}
    return {
        name
        for name, value in found.items()
        if inspect.isclass(value)
        and (issubclass(value, DiffusionPipeline) or hasattr(value, "_backends"))
        and value is not DiffusionPipeline
    }
