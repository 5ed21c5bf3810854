"""Every modular pipeline class of diffusers: the worker makes the image or video that the class itself makes."""

import base64
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.asking import on_one_loop, perform
from tests.zoo.modular import EXCLUDED, MODULAR
from tests.zoo.modular.own import flux3
from tests.zoo.plain import draw, first_medium, load, quiet, runs_here, save
from tests.zoo.recipe import Image, Recipe
from tests.zoo.served import ServedZoo, answered
from worker.catalog.classes.modular import modular_pipelines
from worker.catalog.classes.modular_blocks import always_needed, every_component, needed_with
from worker.core.device import LoadPlan
from worker.core.image import Raster
from worker.engine.loader import load_pipeline
from worker.media.video import encode_video

# An image of a rewritten prompt, a video of two denoisers, one that no scheduler steps, and one with an image.
OFTEN = (
    "Flux3ModularPipeline",
    "Wan22ModularPipeline",
    "EchoModularPipeline",
    "WanImage2VideoModularPipeline",
    "StableDiffusionXLModularPipeline",
)
_RECIPES = {recipe.pipeline: recipe for recipe in MODULAR}
_UNREAD = {"MiniMaxH3ModularPipeline": {"transformer", "transformer_ref"}}  # named by a variable, one for each workflow


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> ServedZoo:
    return ServedZoo(tmp_path_factory.mktemp("modular"))


def test_every_modular_class_of_the_installed_diffusers_was_looked_at():
    """A new release of diffusers turns this red until its new classes have a recipe or a reason to have none."""
    found = {name for name in dir(diffusers) if inspect.isclass(cls := getattr(diffusers, name)) and _is_modular(cls)}
    assert found == set(_RECIPES) | set(EXCLUDED)
    assert not set(_RECIPES) & set(EXCLUDED)
    assert set(modular_pipelines()) == found


def _is_modular(cls: type) -> bool:
    return issubclass(cls, diffusers.ModularPipeline) and cls is not diffusers.ModularPipeline


@pytest.mark.parametrize("name", sorted(modular_pipelines()))
def test_the_parts_that_the_text_of_the_blocks_names_are_those_of_the_blocks(name: str):
    blocks, own = getattr(diffusers, modular_pipelines()[name])(), modular_pipelines()[name]
    assert every_component(own) ^ _loaded(blocks) <= _UNREAD.get(name, set())
    assert always_needed(own) <= _loaded(blocks)
    if blocks._workflow_map:
        for workflow in blocks.available_workflows:
            inputs = blocks._workflow_map[workflow]
            sent = {"prompt", *(inputs[0] if isinstance(inputs, tuple) else inputs)}
            needed = always_needed(own).union(*(needed_with(own, item) for item in sent))
            assert needed <= _loaded(blocks.get_workflow(workflow)), workflow


def _loaded(blocks: Any) -> set[str]:
    return {spec.name for spec in blocks.expected_components if spec.default_creation_method == "from_pretrained"}


@pytest.mark.parametrize("recipe", [_RECIPES[name] for name in OFTEN], ids=OFTEN)
@pytest.mark.quick_rows(2)
def test_the_worker_makes_what_the_class_itself_makes(zoo: ServedZoo, recipe: Recipe):
    assert _difference(zoo, recipe, recipe.pipeline) == 0


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "recipe", [recipe for recipe in MODULAR if runs_here(recipe)], ids=lambda recipe: recipe.pipeline
)
def test_so_it_is_with_every_class(zoo: ServedZoo, recipe: Recipe):
    assert _difference(zoo, recipe, recipe.pipeline) == 0


@pytest.mark.quick_rows(1)
# One that is called layer by layer, and one of two denoisers.
@pytest.mark.parametrize("name", ["Ideogram4ModularPipeline", "Wan22ModularPipeline"])
def test_with_offloading_a_part_computes_only_while_it_is_on_the_device(zoo: ServedZoo, name: str):
    assert _off_the_shelf(_RECIPES[name], zoo.root / name) == (0, set())


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "recipe", [recipe for recipe in MODULAR if runs_here(recipe)], ids=lambda recipe: recipe.pipeline
)
def test_so_it_is_with_every_class_when_offloaded(zoo: ServedZoo, recipe: Recipe):
    assert _off_the_shelf(recipe, zoo.root / recipe.pipeline) == (0, set())


def _off_the_shelf(recipe: Recipe, folder: Path) -> tuple[float, set[str]]:
    """How far offloaded pixels are off the others, and the parts of which a layer ran while another was fetched."""
    made = draw(recipe, load(recipe, save(recipe, folder)))
    pipe = load_pipeline(LoadPlan(folder, recipe.pipeline, "float32", "cpu", "model", 0, 0, format="modular"))
    away: set[str] = set()

    def note(name: str, part: torch.nn.Module) -> None:
        if not pipe._shelf.holds(part):
            away.add(name)

    for name, part in pipe.components.items():
        for layer in part.modules() if isinstance(part, torch.nn.Module) else ():
            if layer is not part:
                layer.register_forward_pre_hook(lambda *_, name=name, part=part: note(name, part))
    output = pipe(**recipe.arguments(), generator=torch.Generator().manual_seed(0), output_type="np")
    media = output.images if hasattr(output, "images") else output.videos
    pipe.maybe_free_model_hooks()
    assert pipe._shelf.holds(None)
    return float(np.abs(first_medium((media,)) - made).max()), away


_SIZE = {"width": 64, "height": 64, "num_inference_steps": 2}


@pytest.mark.parametrize(
    ("parts", "request_"),
    [
        (flux3, {"prompt": "a red apple", **_SIZE}),
        (flux3, {"prompt": "make it red", "image": [Image(), Image(seed=1)], **_SIZE}),
    ],
    ids=("text", "images"),
)
def test_flux3_without_its_upsampler_reads_the_prompt_as_it_is(zoo: ServedZoo, parts: Callable, request_: dict):
    recipe = Recipe("Flux3ModularPipeline", parts, request_, modular=True)
    assert _difference(zoo, recipe, "flux3-bare") == 0


def _difference(zoo: ServedZoo, recipe: Recipe, folder_name: str) -> int:
    """The most by which a value of the worker's answer is off what the class makes of the same seed."""
    folder = save(recipe, zoo.root / folder_name)
    made = draw(recipe, load(recipe, folder))
    frames = [(frame[..., :3] * 255).round().astype(np.uint8) for frame in made.reshape(-1, *made.shape[-3:])]
    expected, output = frames[0], {"format": "png"}
    if len(frames) > 1:  # in the format that loses some of it, as the worker's
        output = {"format": "webp", "quality": 100}
        rasters = [Raster("RGB", frame.shape[1], frame.shape[0], frame.tobytes()) for frame in frames]
        expected = answered({"video": base64.b64encode(encode_video(rasters, 24, "webp", 100)).decode()})
    payload = {**recipe.fields(), "model": f"file:{folder}", "seed": 0, "output": output}
    answer = on_one_loop(perform(zoo.worker, payload, folder_name))
    assert np.ptp(answered(answer)) > 0
    return int(np.abs(answered(answer).astype(int) - expected.astype(int)).max())
