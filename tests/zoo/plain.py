"""Run a recipe with plain diffusers: build, save, load again, call; and see what came out."""

import gc
import importlib.util
import inspect
import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from tests.builders import enliven_control
from tests.zoo.recipe import Recipe

torch.set_num_threads(1)


@dataclass(frozen=True)
class Outcome:
    """How a recipe went. `shape` is that of the first image or video; `error` is empty when it ran."""

    pipeline: str
    seconds: float = 0.0
    megabytes: float = 0.0
    shape: tuple[int, ...] = ()
    flat: bool = False
    error: str = ""
    stage: str = ""
    missing: tuple[str, ...] = ()

    @property
    def ran(self) -> bool:
        return not self.error

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def quiet() -> None:
    """Stop the libraries' progress bars and warnings, which would bury the table."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity(logging.CRITICAL)


def save(recipe: Recipe, folder: Path) -> Path:
    """Build the pipeline and save it as a repository. The same bytes each time, and the caller's seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = recipe.build()
        for name, part in pipeline.components.items():
            if name.startswith("controlnet") and part is not None:
                enliven_control(part)
    whole = {"overwrite_modular_index": True} if recipe.modular else {}
    pipeline.save_pretrained(str(folder), safe_serialization=True, **whole)
    if recipe.moved:
        index = folder / "model_index.json"
        named = json.loads(index.read_text())
        for component, library in recipe.moved.items():
            named[component][0] = library
        index.write_text(json.dumps(named, indent=2))
    return folder


def load(recipe: Recipe, folder: Path) -> Any:
    """Load a saved repository with the class it was saved from."""
    if recipe.modular:
        pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
        pipeline.load_components(dtype=torch.float32)
        _leave_out(pipeline)
        return pipeline
    pipeline = getattr(diffusers, recipe.pipeline).from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(recipe: Recipe, pipeline: Any, seed: int = 0) -> np.ndarray:
    """Call the pipeline as the recipe says and return its first image or video as an array."""
    arguments = recipe.arguments()
    if recipe.modular:
        return _modular(pipeline, arguments | {"generator": torch.Generator("cpu").manual_seed(seed)})
    if recipe.before is not None:
        arguments |= recipe.before(pipeline) or {}
    if "generator" in inspect.signature(pipeline.__call__).parameters:
        arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
    return first_medium(pipeline(**arguments))


def _leave_out(pipeline: Any) -> None:
    """Take away the step that rewrites the prompt, as diffusers says, where a repository has no model for it."""
    steps = pipeline._blocks.sub_blocks
    if "prompt_upsampler" in steps and pipeline.prompt_upsampler is None:
        steps.pop("prompt_upsampler")


def _modular(pipeline: Any, arguments: dict[str, Any]) -> np.ndarray:
    """The first image or video of a modular pipeline; guidance is a matter of its guider."""
    guidance = arguments.pop("guidance_scale", None)
    if guidance is not None and "guidance_scale" in pipeline.blocks.input_names:
        arguments["guidance_scale"] = guidance
    elif guidance is not None:
        for name in {"guider", "guider_2"} & {*pipeline.component_names}:
            setattr(pipeline, name, getattr(pipeline, name).new(guidance_scale=guidance, enabled=True))
    unknown = set(arguments) - set(pipeline.blocks.input_names)
    if unknown:
        raise ValueError(f"no inputs: {unknown}")
    state = pipeline(**arguments, output_type="np")
    media = (state.get("videos"), state.get("images"))
    return _array(next(medium for medium in media if medium is not None))


def first_medium(output: Any) -> np.ndarray:
    """The first image (HxWx3) or video (frames first) of what a pipeline returned. Raises ValueError for neither."""
    for name in ("frames", "images", "image", "video", "rgb", "prediction"):
        if (found := getattr(output, name, None)) is not None:
            return _array(found)
    if isinstance(output, tuple | list) and output:
        return _array(output[0])
    raise ValueError(f"no image in {type(output).__name__} ({', '.join(getattr(output, 'keys', list)())})")


def runs_here(recipe: Recipe) -> bool:
    """Whether the recipe says that it runs, and what it needs is installed."""
    return recipe.broken is None and all(importlib.util.find_spec(name) is not None for name in recipe.needs)


def run_plain(recipe: Recipe, folder: Path) -> Outcome:
    """Do all of it and say how it went; nothing is raised but KeyboardInterrupt."""
    missing = tuple(name for name in recipe.needs if importlib.util.find_spec(name) is None)
    start, stage, size = time.perf_counter(), "build", 0.0
    pipeline = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(recipe, folder)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
            stage = "load"
            pipeline = load(recipe, folder)
            stage = "call"
            medium = draw(recipe, pipeline)
        if not np.isfinite(medium.astype(np.float64)).all():
            raise ValueError("the image has values that are not finite")
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        took = time.perf_counter() - start
        return Outcome(recipe.pipeline, took, size, error=text[:400], stage=stage, missing=missing)
    finally:
        del pipeline
        gc.collect()
    flat = bool(np.ptp(medium) == 0)
    return Outcome(recipe.pipeline, time.perf_counter() - start, size, medium.shape, flat, missing=missing)


def _array(found: Any) -> np.ndarray:
    if isinstance(found, torch.Tensor):
        return found.detach().float().numpy()
    if isinstance(found, Image.Image):
        return np.asarray(found)
    if isinstance(found, np.ndarray):
        return found
    items = list(_flatten(found))
    if not items or not isinstance(items[0], Image.Image | np.ndarray | torch.Tensor):
        raise ValueError(f"no image in a list of {type(items[0]).__name__ if items else 'nothing'}")
    return np.stack([_array(item) for item in items]) if len(items) > 1 else _array(items[0])


def _flatten(found: Any) -> Iterator[Any]:
    if isinstance(found, list | tuple):
        for item in found:
            yield from _flatten(item)
    else:
        yield found
