"""A model's schema and the worker agree on every request: what fits is accepted, what does not is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.corpus import sparse_file, stored
from tests.zoo import RECIPES
from tests.zoo.agreement import compare, refused_examples
from tests.zoo.plain import quiet, runs_here
from tests.zoo.recipe import Image, on_the_wire
from tests.zoo.served import ServedZoo

# Of each way that a request reaches a pipeline, and that its fields depend on one another.
CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "FluxKontextPipeline",
    "QwenImageEditPipeline",
    "AnimateDiffPipeline",
    "LTXPipeline",
    "WanImageToVideoPipeline",
    "WanVACEPipeline",
    "StableDiffusionUpscalePipeline",
    "VisualClozePipeline",
)
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
REQUESTS = 150


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()


@pytest.fixture(scope="module")
def bare_zoo(tmp_path_factory: pytest.TempPathFactory) -> ServedZoo:
    return ServedZoo(tmp_path_factory.mktemp("agreement"))


# What a repository has of its parts without weights; an empty one is as good here.
_BESIDE = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer.json",
    "Processor": "preprocessor_config.json",
    "Extractor": "preprocessor_config.json",
}


def bare(zoo: ServedZoo, pipeline: str) -> Path:
    """A repository that says what it consists of, and has no weights: whatever were loaded would fail."""
    folder = zoo.root / pipeline
    if not folder.exists():
        parts = _RECIPES[pipeline].parts() if runs_here(_RECIPES[pipeline]) else {}
        named = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **named}))
        for name, (_, cls) in named.items():
            for file in {file for kind, file in _BESIDE.items() if kind in cls}:
                (folder / name).mkdir(exist_ok=True)
                (folder / name / file).write_text("{}")
    return folder


def beside(zoo: ServedZoo, pipeline: str) -> dict[str, list[Any]]:
    """What may stand beside a model only where there are files that fit it."""
    if pipeline == "StableDiffusionXLPipeline":
        model = f"file:{bare(zoo, pipeline)}"
        return {"refiner": [model, {"model": model, "start": 0.5}], "denoising_end": [0.8]}
    if pipeline != "StableDiffusionPipeline":
        return {}
    # All header: the weights themselves are a hole in the file.
    path = sparse_file(zoo.root / "control.safetensors", stored("controlnet-sd1-diffusers"))
    control, image = {"model": f"file:{path}"}, on_the_wire(Image())
    followed = control | {"image": image}
    values = [control, followed, [followed], [followed, followed], [followed | {"start": 0.5, "end": 0.4}]]
    return {"controlnets": values, "guess_mode": [True]}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("pipeline", CLASSES)
def test_the_schema_and_the_worker_agree_on_every_request(bare_zoo: ServedZoo, pipeline: str):
    folder = bare(bare_zoo, pipeline)
    found = compare(bare_zoo, _RECIPES[pipeline], folder, REQUESTS, beside(bare_zoo, pipeline))
    assert found.apart == [], "\n".join(found.apart)
    assert min(found.counts["taken"], found.counts["refused"]) > REQUESTS / 10
    assert refused_examples(bare_zoo, folder) == []
    assert bare_zoo.worker.engine.resident_models == []


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_schema_and_the_worker_agree_for_every_class(bare_zoo: ServedZoo):
    apart = {}
    for recipe in filter(runs_here, RECIPES):
        folder = bare(bare_zoo, recipe.pipeline)
        apart[recipe.pipeline] = compare(bare_zoo, recipe, folder, REQUESTS // 5, {}).apart
        apart[recipe.pipeline] += refused_examples(bare_zoo, folder)
    assert {name: said for name, said in apart.items() if said} == {}
