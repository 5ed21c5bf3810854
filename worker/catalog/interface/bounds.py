"""The meaning and the bounds of a parameter of a pipeline's call: by its name, else by its ending."""

import re
from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema
from worker.catalog.interface.glossary import GLOSSARY
from worker.core.pipeline import Companion, PipelineRow

MAX_TEXT_CHARS = 8_000
MAX_ITEMS = 1_024

# Bounds and meaning of names that many pipelines share.
BOUNDS: Mapping[str, tuple[float, float, str]] = {
    "guidance_scale": (0, 30, "How strongly the prompt is followed."),
    "true_cfg_scale": (0, 30, "Classifier-free guidance with the negative prompt; 1 turns it off."),
    "strength": (0, 1, "How much of the input image is redrawn: near 0 keeps it, 1 ignores it."),
    "guidance_rescale": (0, 1, "Tones down over-exposure from a high guidance_scale."),
    "eta": (0, 1, "Noise that DDIM adds back at every step."),
    "clip_skip": (0, 12, "Last layers of the text encoder to leave out: 1 is A1111's clip skip 2."),
    "denoising_start": (0, 1, "Fraction of the steps to skip at the start."),
    "denoising_end": (0, 1, "Fraction of the steps after which to stop."),
    "control_guidance_start": (0, 1, "Fraction of the steps at which control begins."),
    "control_guidance_end": (0, 1, "Fraction of the steps at which control ends."),
    "num_frames": (1, 257, "Frames to draw."),
    "video_length": (1, 257, "Frames to draw."),
    "frames": (1, 257, "Frames to draw."),
    "fps": (1, 60, "Frames a second."),
    "frame_rate": (1, 60, "Frames a second."),
    "decode_chunk_size": (1, 64, "Frames decoded at once."),
    "latent_window_size": (1, 32, "Latent frames that are drawn at once."),
    "max_sequence_length": (1, 2_048, "Prompt tokens that are read."),
    "max_new_tokens": (1, 4_096, "Tokens that the model may write."),
    "noise_level": (0, 999, "Noise added to the input image before upscaling."),
    "ensemble_size": (1, 16, "Runs that are averaged."),
    "scale": (0.25, 8, "How many times as large the image becomes; what the file is made for when left out."),
    "tile": (64, 2_048, "Pixels a side that an upscaler sees at once: less takes less memory."),
    "padding_mask_crop": (0, 1_024, "Margin in pixels kept around the mask."),
}
# Names that no row above lists: by ending, so that a new pipeline's parameter is bounded too.
_ENDINGS: tuple[tuple[re.Pattern[str], float, float], ...] = (
    (re.compile(r".*guidance_scale.*|.*cfg_scale|(pag|sag|stg)_scale"), 0, 30),
    (re.compile(r".*strength"), 0, 1),
    (re.compile(r".*(original|target)_size|.*crops?_coord.*"), 0, 16_384),
    (re.compile(r".*(resolution|width|height|_size)"), 0, 4_096),
    (re.compile(r"timesteps|.*_timesteps"), 0, 1_000),
    (re.compile(r"sigmas|.*_sigmas"), 0, 1_000),
)
_ANY_NUMBER = (-1_000_000, 1_000_000)
_ORDINARY = PipelineRow("")


def bounded(name: str, schema: Schema, max_steps: int, row: PipelineRow = _ORDINARY) -> Schema:
    """Return `schema` of the parameter `name` with every number, list and text bounded, and the name's meaning.

    `row` says what a class takes where the name's own bounds are too wide."""
    limited = _limited(name, schema, max_steps)
    for bound, numbers in (("minimum", row.least), ("maximum", row.most), ("multipleOf", row.multiples)):
        if name in numbers:
            limited = _narrowed(limited, **{bound: numbers[name]})
    description = " ".join(filter(None, (meaning(name), _needed_beside(row.companions.get(name)))))
    return limited | ({"description": description} if description else {})


def _needed_beside(companion: Companion | None) -> str:
    if companion is None:
        return ""
    least = "" if companion.least is None else f" of at least {companion.least:g}"
    return f"Needs {companion.parameter}{least} beside it."


def _narrowed(schema: Schema, **bounds: JsonValue) -> Schema:
    members = schema.get("anyOf")
    if isinstance(members, list):
        return schema | {"anyOf": [_narrowed(member, **bounds) for member in members if isinstance(member, dict)]}
    return schema | bounds if "minimum" in schema else schema


def meaning(name: str) -> str | None:
    """Return the meaning of a parameter of this name, in a sentence; None for one that a new diffusers brought."""
    return BOUNDS[name][2] if name in BOUNDS else GLOSSARY.get(name)


def _limited(name: str, schema: Schema, max_steps: int) -> Schema:
    if re.fullmatch(r".*_steps?", name):
        return _bounded(schema, 0, max_steps, max_steps)
    if name in BOUNDS:
        low, high, _ = BOUNDS[name]
        return _bounded(schema, low, high, max_steps)
    for pattern, low, high in _ENDINGS:
        if pattern.fullmatch(name):
            return _bounded(schema, low, high, max_steps if "timesteps" in name or "sigmas" in name else MAX_ITEMS)
    return _bounded(schema, *_ANY_NUMBER, MAX_ITEMS)


def _bounded(schema: Schema, low: float, high: float, items: int) -> Schema:
    """Return `schema` with every number between `low` and `high`, and every list and text of bounded length."""
    members = schema.get("anyOf")
    if isinstance(members, list):
        return {"anyOf": [_bounded(member, low, high, items) for member in members if isinstance(member, dict)]}
    kind, inner = schema.get("type"), schema.get("items")
    if kind in ("integer", "number"):
        ceiling = schema.get("maximum", high)
        return schema | {"minimum": low, "maximum": min(ceiling, high) if isinstance(ceiling, int | float) else high}
    if kind == "string" and "enum" not in schema:
        return schema | {"maxLength": MAX_TEXT_CHARS}
    if kind == "array" and isinstance(inner, dict):
        return {"maxItems": items, "minItems": 1} | schema | {"items": _bounded(inner, low, high, items)}
    return dict(schema)
