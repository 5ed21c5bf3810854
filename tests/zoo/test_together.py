"""Several jobs in one call, for every class: each gets the image that it gets alone, or the class is drawn alone."""

import asyncio
import base64
import importlib.util
import io
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.answers import files_of
from tests.asking import perform
from tests.loras import build, lora
from tests.zoo import RECIPES
from tests.zoo.plain import quiet, save
from tests.zoo.recipe import Recipe
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings
from worker.core.errors import WorkerError
from worker.core.model import DENOISERS

# Prompts of different lengths, a mask, noise that starts from an image; and two classes whose own batch is wrong.
OFTEN = (
    "StableDiffusionInpaintPipeline",
    "FluxImg2ImgPipeline",
    "ZImagePipeline",
    "Kandinsky3Pipeline",
    "StableDiffusion3ControlNetPipeline",
)
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_WORDS = ("", "a very long prompt of many words about red apples, green pears and blue plums on a table", "x")
_ids = itertools.count()


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()


@pytest.mark.parametrize("recipe", [_RECIPES[name] for name in OFTEN], ids=OFTEN)
@pytest.mark.quick_rows(2)
def test_jobs_drawn_together_get_the_images_they_get_alone(recipe: Recipe, tmp_path: Path):
    assert asyncio.run(_difference(recipe, tmp_path)) in (0, 1)


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_so_it_is_with_every_class(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    wrong: dict[str, int | str] = {}
    for recipe in (recipe for recipe in RECIPES if all(map(importlib.util.find_spec, recipe.needs))):
        caplog.clear()
        try:
            difference = asyncio.run(_difference(recipe, tmp_path / recipe.pipeline))
        except WorkerError as error:
            wrong[recipe.pipeline] = error.message
            continue
        # Whoever fails in company is drawn alone after that, which takes its time.
        failed = [record.getMessage() for record in caplog.records if record.name == "worker.engine.engine"]
        if difference is not None and (difference > 1 or failed):
            wrong[recipe.pipeline] = failed[0].splitlines()[0] if failed else difference
    assert wrong == {}


# With layers whose rows are all tokens of all images, with guidance in one call and in two, and with no transformer.
MIXED = ("ZImagePipeline", "QwenImagePipeline", "SanaPipeline", "AuraFlowPipeline", "Flux2Pipeline", "Lumina2Pipeline")


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_jobs_with_loras_of_their_own_get_the_images_they_get_alone(name: str, tmp_path: Path):
    difference, shared = asyncio.run(_mixed(_RECIPES[name], tmp_path))
    assert difference <= 1
    assert shared == 3


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_so_it_is_with_loras_of_every_class(tmp_path: Path):
    wrong: dict[str, int | str] = {}
    for recipe in (recipe for recipe in RECIPES if all(map(importlib.util.find_spec, recipe.needs))):
        try:
            difference, _ = asyncio.run(_mixed(recipe, tmp_path / recipe.pipeline))
        except WorkerError as error:
            if error.code != "engine_failure":
                continue  # it takes no LoRAs, or cannot be drawn at all, which tests/zoo/test_zoo.py knows of
            wrong[recipe.pipeline] = error.message
            continue
        if difference > 1:
            wrong[recipe.pipeline] = difference
    assert wrong == {}


async def _mixed(recipe: Recipe, root: Path) -> tuple[int, int]:
    """The most by which a value of three jobs, two of them with LoRAs, differs from alone; and how many shared a call.

    Alone is without a worker that batches, so with merged weights.
    """
    worker = _worker(recipe, root)
    files = [f"file:{path}" for path in _loras(recipe, root)]
    sets = (files[:1], [], files)
    jobs = [{**_job(recipe, index), **({"loras": chosen} if chosen else {})} for index, chosen in enumerate(sets)]
    alone = [await _drawn(worker, job) for job in jobs]
    answers = await asyncio.gather(*(_answer(worker, job) for job in jobs))
    together = [_images(answer) for answer in answers]
    pairs = [pair for both in zip(together, alone, strict=True) for pair in zip(*both, strict=True)]
    difference = max((int(np.abs(one - other).max()) for one, other in pairs), default=0)
    return difference, answers[0]["timings"]["batch_size"]


def _loras(recipe: Recipe, root: Path) -> list[Path]:
    """Two LoRA files of the denoiser's attention and feed-forward layers."""
    with torch.random.fork_rng(devices=[]):
        pipe = recipe.build()
    part = next((name for name in DENOISERS if getattr(pipe, name, None) is not None), "")
    layers = [
        name
        for name, module in (getattr(pipe, part).named_modules() if part else ())
        if isinstance(module, torch.nn.Linear) and re.search("attn|attention|ff|feed", name)
    ]
    return [
        build(pipe, part, layers, lora, seed=seed).save(root / f"{seed}.safetensors") for seed in (1, 2) if layers
    ] or [root / "none.safetensors"] * 2


async def _difference(recipe: Recipe, root: Path) -> int | None:
    """The most by which any value of three jobs drawn together, one of them of two images, differs from alone.

    None where they cannot even be drawn alone, which tests/zoo/test_zoo.py knows of.
    """
    worker = _worker(recipe, root)
    jobs = [_job(recipe, index) for index in range(3)]
    try:
        alone = [await _drawn(worker, job) for job in [*jobs, {**jobs[2], "seed": jobs[2]["seed"] + 1}]]
    except WorkerError:
        return None
    if any(len(images) != 1 for images in alone):
        return 0  # a video, or several layers
    jobs[2]["num_images"] = 2
    several = await _drawn(worker, jobs[2])
    together = await asyncio.gather(*(_drawn(worker, job) for job in jobs))
    found = [image for images in (several, *together) for image in images]
    expected = [image for images in (*alone[2:], *alone) for image in images]
    return max(int(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))


def _worker(recipe: Recipe, root: Path) -> Worker:
    save(recipe, root / "model")
    (root / "models.yaml").write_text('{"models": {"zoo": {"source": "file:model"}}}')
    return build_worker(
        Settings(
            models_yaml=root / "models.yaml",
            default_model="zoo",
            allowed_model_dirs=(root,),
            volume_dir=root / "volume",
            device="cpu",
            offline=True,
            batch_size=4,
            batch_timeout_ms=500,
            max_response_mb=100,
        )
    )


def _job(recipe: Recipe, index: int) -> dict[str, Any]:
    """The recipe's request with words, a seed and an image of its own."""
    job: dict[str, Any] = {**recipe.fields(), "seed": 5 * index}
    if "prompt" in job and _WORDS[index]:
        job["prompt"] = _WORDS[index]
    if index and isinstance(job.get("image"), str):
        image = ImageOps.flip(_opened(job["image"]))
        out = io.BytesIO()
        image.save(out, "PNG")
        job["image"] = base64.b64encode(out.getvalue()).decode()
    return job


async def _answer(worker: Worker, job: Mapping[str, Any]) -> dict[str, Any]:
    return await perform(worker, dict(job), f"together-{next(_ids)}", lambda progress: None)


async def _drawn(worker: Worker, job: Mapping[str, Any]) -> list[np.ndarray]:
    return _images(await _answer(worker, job))


def _images(answer: Mapping[str, Any]) -> list[np.ndarray]:
    files = files_of(dict(answer)) if {"image", "images"} & answer.keys() else []
    return [np.asarray(_opened(text).convert("RGB")).astype(int) for text in files]


def _opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1])))
