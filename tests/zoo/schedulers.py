"""Write worker/catalog/interface/pipeline_schedulers.json: which schedulers each pipeline class was seen to run with.

    python -m tests.zoo.schedulers

Run it after a new diffusers is pinned (`make schedulers`). Every recipe of the zoo is drawn once with its own scheduler
and once with each that fits what its model predicts. A class counts when the image comes out finite, and `shift` when
it changes the image. A pipeline that draws the same with all of them has a second pipeline inside, which does not see
its scheduler: it runs with none. It takes about a quarter of an hour.
"""

import contextlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

import worker.engine.compatibility  # noqa: F401  what has moved inside the libraries is put back
from tests.zoo import RECIPES
from tests.zoo.plain import draw, load, quiet, save
from tests.zoo.recipe import Recipe
from worker.catalog.call import Model
from worker.catalog.interface.sampling import FILE, native
from worker.catalog.repositories import detect_repository
from worker.catalog.schedulers import CLASSES, Noise
from worker.core.job import SchedulerChoice
from worker.core.model import ModelSource, ModelSpec
from worker.engine.schedulers import build_scheduler

_SPEC = ModelSpec(id="zoo", source=ModelSource(scheme="file", locator="zoo"))
_SHIFT = 1.7


@dataclass(frozen=True)
class Measured:
    """What one class runs with, and for which of these `shift` does something."""

    pipeline: str
    noise: Noise
    runs: tuple[str, ...]
    shifts: tuple[str, ...]


def measure(recipe: Recipe, folder: Path) -> Measured | None:
    """Draw the recipe with every scheduler that might fit; None for one that has no scheduler to replace."""
    save(recipe, folder)
    noise, own = native(Model(_SPEC, detect_repository(_configs(folder))))
    pipeline = load(recipe, folder)
    if noise is None or own is None or type(getattr(pipeline, "scheduler", None)).__name__ != own:
        return None
    scheduler = pipeline.scheduler
    images: dict[str, np.ndarray] = {}
    shifts = []
    for row in CLASSES.values():
        if noise not in row.noise:
            continue
        choice = SchedulerChoice(row.name, row.name, row.options, flow=noise == "flow", replaces=frozenset({own}))
        image = _drawn(recipe, pipeline, scheduler, choice)
        if image is None:
            continue
        images[row.name] = image
        if noise == "flow" and row.shifts:
            shifted = SchedulerChoice(
                row.name, row.name, row.options, shift=_SHIFT, flow=True, replaces=frozenset({own})
            )
            other = _drawn(recipe, pipeline, scheduler, shifted)
            if other is not None and not np.array_equal(other, image):
                shifts.append(row.name)
    seen = len(images) < 2 or any(not np.array_equal(image, images[own]) for image in images.values())
    if not seen and np.ptp(images[own]) > 0:
        return Measured(recipe.pipeline, noise, (), ())
    return Measured(recipe.pipeline, noise, tuple(images), tuple(shifts))


def table(found: Iterable[Measured]) -> dict[str, Any]:
    """The file's content: pipelines of the same outcome together."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for item in found:
        groups.setdefault((item.noise, item.runs, item.shifts), []).append(item.pipeline)
    return {
        "diffusers": diffusers.__version__,
        "groups": [
            {"noise": noise, "runs": [*runs], "shifts": [*shifts], "pipelines": sorted(pipelines)}
            for (noise, runs, shifts), pipelines in sorted(groups.items())
        ],
    }


def _drawn(recipe: Recipe, pipeline: Any, own: Any, choice: SchedulerChoice) -> np.ndarray | None:
    """The image, or None where the pipeline fails with that scheduler or draws no numbers."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = build_scheduler(own, choice)
        image = draw(recipe, pipeline)
        if np.isfinite(image.astype(np.float64)).all():
            return image
    return None


def _configs(folder: Path) -> Mapping[str, Mapping[str, object]]:
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def main() -> int:
    """Measure the whole zoo and write the table."""
    quiet()
    logging.disable(logging.CRITICAL)
    found = []
    for number, recipe in enumerate(RECIPES, 1):
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            try:
                measured = None if recipe.broken else measure(recipe, Path(folder))
            except Exception as error:
                measured = None
                print(f"{recipe.pipeline}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        found += [measured] if measured else []
        runs = len(measured.runs) if measured else 0
        print(f"{number:3}/{len(RECIPES)} {recipe.pipeline:52} {runs:2}", flush=True)
    FILE.write_text(json.dumps(table(found), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
