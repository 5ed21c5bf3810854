"""Several jobs in one call, for every class: each gets the image that it gets alone, or the class is drawn alone."""

import asyncio
import base64
import importlib.util
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.asking import perform
from tests.zoo import RECIPES
from tests.zoo.plain import quiet, save
from tests.zoo.recipe import Recipe
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings
from worker.core.errors import WorkerError

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


async def _drawn(worker: Worker, job: Mapping[str, Any]) -> list[np.ndarray]:
    answer = await perform(worker, dict(job), f"together-{next(_ids)}", lambda progress: None)
    return [np.asarray(_opened(text).convert("RGB")).astype(int) for text in answer.get("images") or ()]


def _opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1])))
