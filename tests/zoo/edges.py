"""Requests at the edges of a model's own schema: what the schema takes must not fail in the pipeline."""

import asyncio
import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.asking import perform
from tests.zoo.plain import save
from tests.zoo.recipe import Recipe
from tests.zoo.served import ServedZoo, answered
from worker.core.errors import EngineFailure, WorkerError

Fields = dict[str, Any]
# No edge of these is worth its time: they only take longer, or are said otherwise.
_LEFT = frozenset({"seed", "timeout_s", "fps", "frame_rate", "outpaint", "clip_skip", "model"})
# A tiny model's one word is an empty text.
_LEFT |= {"max_new_tokens"}
# Its camera's algebra is in half precision, which no CPU has.
_UNFIT = {"SanaWMPipeline": {"precision"}}
# The largest that a tiny model is asked for.
_MOST = {
    "num_inference_steps": 5, "num_frames": 21, "frames": 21, "video_length": 21, "num_images": 3,
    "max_sequence_length": 64, "processing_resolution": 128,
}  # fmt: skip
_SIDES = ("width", "height")
# It blurs maps that a side of 32 is too small for; no model but a tiny one is asked for that.
_LEAST_SIDE = {"StableDiffusionSAGPipeline": 64}
# Values that fail for what only a tiny model or a CPU has, by class and field.
_FAILING: Mapping[str, Mapping[str, frozenset[str]]] = {
    # The random weights of its depth network overflow in float16, so that all is NaN. Trained ones are published in it.
    "StableDiffusionDepth2ImgPipeline": {"precision": frozenset({"fp16"})},
    # Its grid of cameras refuses half precision on a CPU, and on no GPU.
    "SanaWMPipeline": {"precision": frozenset({"bf16", "fp16"})},
}
_ids = itertools.count()


def edges(schema: Mapping[str, Any], own: Fields, dice: random.Random, side: int = 32) -> Iterator[Fields]:
    """Requests with one or two fields at an edge of what `schema` takes, the rest as in `own`; the same each time.

    `side` is the smallest that is tried, in pixels.
    """
    properties: Mapping[str, Any] = schema["properties"]
    taken = {name: _numbers(name, item) for name, item in properties.items() if name not in _LEFT}
    for name, values in taken.items():
        yield from ({**own, name: value} for value in values)
    steps = taken.get("num_inference_steps", [])
    if "strength" in own and steps:
        yield from ({**own, "strength": share, "num_inference_steps": 1} for share in (1.0, 0.01))
        yield from ({**own, "strength": share, "num_inference_steps": 4} for share in (0.25, 0.26, 0.99, 1.0))
    if {*_SIDES} <= properties.keys() & own.keys():
        multiple = properties["width"].get("multipleOf", 1)
        least = max(properties["width"]["minimum"], side)
        for _ in range(3):
            width, height = (-(-least // multiple) * multiple + dice.randrange(4) * multiple for _ in _SIDES)
            yield {**own, "width": width, "height": height}
    for name, item in properties.items():
        if "boolean" in _kinds(item):
            yield {**own, name: not item.get("default", False)}
        yield from ({**own, name: value} for value in item.get("enum", ())[:6] if name != "task" and value is not None)


def _numbers(name: str, item: Mapping[str, Any]) -> list[Any]:
    number = next((kind for kind in (item, *item.get("anyOf", ())) if _kinds(kind) & {"integer", "number"}), None)
    if number is None or name in _SIDES:
        return []
    low, high = number.get("minimum"), number.get("maximum")
    most = _MOST["num_inference_steps"] if name.endswith("_steps") else _MOST.get(name)
    high = most if most is not None else high
    # A bound of a million is that of a field of unknown meaning, and no edge.
    values = [value for value in (low, high) if value is not None and abs(value) < 1_000_000]
    if low == 0:
        values.append(1)
    if "integer" in _kinds(number) and low is not None and low >= 0:
        values.append(low + 1)
    return list(dict.fromkeys(values))


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    return {kinds} if isinstance(kinds, str) else {*kinds}


def failures(zoo: ServedZoo, recipe: Recipe, folder: Path) -> tuple[int, list[str]]:
    """How many edge requests were drawn, and those that were accepted and that the pipeline then failed on."""
    if not any((folder / name).exists() for name in ("model_index.json", "modular_model_index.json")):
        save(recipe, folder)
    return asyncio.run(_failures(zoo, recipe, folder))


async def _failures(zoo: ServedZoo, recipe: Recipe, folder: Path) -> tuple[int, list[str]]:
    model, found, drawn = f"file:{folder}", [], 0
    schema = await perform(zoo.worker, {"action": "schema", "model": model}, "schema")
    own = recipe.fields()
    unfit = {name for name, value in recipe.values.items() if value is None} | _UNFIT.get(recipe.pipeline, set())
    schema["properties"] = {name: item for name, item in schema["properties"].items() if name not in unfit}
    for fields in edges(schema, own, random.Random(recipe.pipeline), _LEAST_SIDE.get(recipe.pipeline, 32)):
        changed = {name: value for name, value in fields.items() if own.get(name) != value}
        if any(changed.get(name) in values for name, values in _FAILING.get(recipe.pipeline, {}).items()):
            continue
        try:
            payload = {"seed": 0, "output": {"format": "webp"}, **fields, "model": model}
            answer = await perform(zoo.worker, payload, f"edge-{next(_ids)}")
            drawn += 1
            if not np.isfinite(answered(answer).astype(float)).all():
                found.append(f"{changed}: not finite")
        except EngineFailure as error:
            found.append(f"{changed}: {error.message}")
        except WorkerError:
            continue  # refused by name, before anything is loaded: tests/zoo/test_agreement.py holds that
    return drawn, found
