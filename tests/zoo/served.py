"""Run a recipe's repository through the worker, as a caller would."""

import base64
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from tests.answers import files_of
from tests.asking import on_one_loop, perform
from tests.zoo.plain import Outcome, save
from tests.zoo.recipe import Recipe
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings
from worker.core.errors import WorkerError


def zoo_worker(root: Path) -> Worker:
    """A worker that may load any repository below `root`, on the CPU and without a network."""
    root.mkdir(parents=True, exist_ok=True)
    registry = root / "models.yaml"
    registry.write_text('{"models": {"zoo": {"source": "file:zoo"}}}')
    settings = Settings(
        models_yaml=registry,
        default_model="zoo",
        allow_unregistered_models=True,
        allowed_model_dirs=(root,),
        volume_dir=root / "volume",
        device="cpu",
        offline=True,
        warm_up=False,
        max_response_mb=100,
    )
    return build_worker(settings)


class ServedZoo:
    """One worker that may load any repository below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.worker = zoo_worker(root)

    def run(self, recipe: Recipe, folder: Path) -> Outcome:
        """Send the recipe's request and say how it went. The repository is made if it is not there yet."""
        if not any((folder / name).exists() for name in ("model_index.json", "modular_model_index.json")):
            try:
                save(recipe, folder)
            except Exception as error:
                return Outcome(recipe.pipeline, error=f"{type(error).__name__}: {error}"[:400], stage="build")
        start = time.perf_counter()
        try:
            answer = on_one_loop(self.ask(recipe, folder))
            medium = answered(answer)
        except WorkerError as error:
            text = f"{error.code}: {error.message}" + (f" ({error.field})" if error.field else "")
            return Outcome(recipe.pipeline, time.perf_counter() - start, error=text[:400], stage="worker")
        except Exception as error:
            text = f"unforeseen {type(error).__name__}: {error}".replace("\n", " ")
            return Outcome(recipe.pipeline, time.perf_counter() - start, error=text[:400], stage="worker")
        return Outcome(recipe.pipeline, time.perf_counter() - start, shape=medium.shape, flat=bool(np.ptp(medium) == 0))

    async def ask(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """The worker's answer to the recipe's request. Raises WorkerError."""
        # webp holds an image as well as a video, and Pillow reads both
        payload = {**recipe.fields(), "model": f"file:{folder}", "seed": 0, "output": {"format": "webp"}}
        return await perform(self.worker, payload, f"zoo-{recipe.pipeline}", lambda progress: None)


def answered(answer: dict[str, Any]) -> np.ndarray:
    """The first image (HxWx3) or video (frames first) of an answer."""
    encoded = files_of(answer)[0]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    return np.stack(frames) if len(frames) > 1 else frames[0]
