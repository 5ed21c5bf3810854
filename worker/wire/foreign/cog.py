"""The inputs of Replicate's models, as cog-flux and its like name them."""

from collections.abc import Mapping
from math import sqrt

from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.errors import ParameterOutOfRange

# A bare input with one of these is meant for such a model: no field of ours has these names.
MARKS = frozenset(
    {"go_fast", "megapixels", "aspect_ratio", "disable_safety_checker", "hf_lora", "lora_weights", "extra_lora"}
)
# Of Replicate's own service, and without an effect on what is drawn.
_SILENT = ("disable_safety_checker", "apply_watermark", "output_quality", "output_format")
_WITHOUT_EFFECT = ("go_fast", "refine", "high_noise_frac", "refine_steps")
_USUAL = (False, "false", "no_refiner", 0)  # values that ask for nothing
_NAMES = {
    "num_outputs": "num_images",
    "prompt_strength": "strength",
    "guidance": "guidance_scale",
    "mask": "mask_image",
    "steps": "num_inference_steps",
}
_LORAS = (("hf_lora", "lora_scale"), ("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))
_FROM_THE_IMAGE = "match_input_image"
MAX_RATIO = 4.0
_UNIT = 1_024 * 1_024  # pixels of one of their megapixels, and their grid
_GRID = 32


def decode(
    payload: Mapping[str, JsonValue], pixels: int = _UNIT, grid: int = _GRID
) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Return an input in our fields, and what has no effect here.

    A shape without a size is drawn in about `pixels`, each side a multiple of `grid`. Raises ParameterOutOfRange.
    """
    left = {name: value for name, value in payload.items() if value not in (None, "")}
    fields: dict[str, JsonValue] = {
        _NAMES.get(name, name): value for name, value in left.items() if name not in _taken()
    }
    notes = [f"{name} has no effect here." for name in _WITHOUT_EFFECT if left.get(name, False) not in _USUAL]
    if has_image := bool(fields.get("image")):
        fields.setdefault("strength", 0.8)
    else:
        fields.pop("strength", None)
    fields |= _size(left, pixels, grid, has_image=has_image)
    if loras := _loras(left):
        own = fields.get("loras")
        fields["loras"] = [*(own if isinstance(own, list) else []), *loras]
    if output := _output(left):
        fields["output"] = {**output, **(own if isinstance(own := fields.get("output"), dict) else {})}
    return fields, tuple(notes)


def _taken() -> frozenset[str]:
    loras = (name for pair in _LORAS for name in pair)
    return frozenset({*_SILENT, *_WITHOUT_EFFECT, *loras, "aspect_ratio", "megapixels"})


def _loras(left: Mapping[str, JsonValue]) -> list[JsonValue]:
    return [
        {"model": left[name], "weight": left.get(scale, 1.0)} if scale in left else left[name]
        for name, scale in _LORAS
        if name in left
    ]


def _output(left: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    output: dict[str, JsonValue] = {}
    if "output_format" in left:
        output["format"] = left["output_format"]
    quality = number_in(left.get("output_quality"))
    if quality is not None:
        output["quality"] = max(1, int(quality))
    return output


def _size(left: Mapping[str, JsonValue], pixels: int, grid: int, *, has_image: bool) -> dict[str, JsonValue]:
    """Return the size that a shape and a number of megapixels mean; nothing where one is named, or an image has it."""
    ratio, megapixels = left.get("aspect_ratio"), left.get("megapixels")
    if (
        ratio in ("custom", _FROM_THE_IMAGE)
        or (ratio is None and megapixels is None)
        or {"width", "height"} & left.keys()
    ):
        return {}
    if has_image and ratio is None:
        return {}
    share = 1.0
    if megapixels is not None and megapixels != _FROM_THE_IMAGE:
        number = number_in(str(megapixels).removesuffix("MP").strip())
        if number is None or not 0 < number <= 4:
            raise ParameterOutOfRange("megapixels must be a number above 0, at most 4.", field="megapixels")
        share = float(number)
    across, down = _ratio(ratio)
    width = sqrt(pixels * share * across / down)
    return {"width": _on_grid(width, grid), "height": _on_grid(width * down / across, grid)}


def _ratio(text: JsonValue) -> tuple[float, float]:
    if text is None:
        return 1.0, 1.0
    parts = [number_in(part) for part in str(text)[:20].split(":")]
    across, down = parts if len(parts) == 2 else (None, None)
    if not across or not down or across < 0 or down < 0 or not 1 / MAX_RATIO <= across / down <= MAX_RATIO:
        raise ParameterOutOfRange(
            'aspect_ratio must be two numbers as in "16:9", at most 4:1; or send width and height.',
            field="aspect_ratio",
        )
    return float(across), float(down)


def _on_grid(side: float, grid: int) -> int:
    return max(grid, round(side / grid) * grid)
