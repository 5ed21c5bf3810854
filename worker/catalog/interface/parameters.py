"""The parameters that a model takes for a task, as JSON Schema with bounds and defaults."""

import math
from collections.abc import Collection, Mapping

from pydantic import JsonValue

from worker.catalog.architectures import base_of, variant_defaults
from worker.catalog.call import ModelCall, once
from worker.catalog.classes.annotations import Schema
from worker.catalog.classes.inputs import missing_fields
from worker.catalog.classes.refusals import PART_OF
from worker.catalog.classes.signatures import DENIED, CallParameter, regenerates_by_strength
from worker.catalog.interface.bounds import BOUNDS, bounded
from worker.catalog.interface.fitting import fits
from worker.catalog.interface.prompt_encoding import clip_skip_limit, prompt_form
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sampling import LISTS, fit_of, sampling_properties
from worker.catalog.interface.sizes import FRAME_COUNTS, default_fps, size_bounds, step_limit
from worker.core.job import PROMPT_PARAMETERS
from worker.core.model import Task
from worker.core.prompt import PROMPT_WEIGHTINGS

REQUEST_DEFAULTS = ("negative_prompt",)  # those of a model's defaults that fill fields of the request itself
_WEIGHTING = (
    "Whether (word), [word], (word:1.3) and BREAK weigh and part the prompts and long ones are read in chunks, as in "
    "AUTOMATIC1111's web UI: a1111 always, none never, auto where a prompt has such marks or is too long. Models that "
    "read prose with a T5 take only (word:1.3) and BREAK for a mark under auto."
)


@once
def takes_negative_prompt(call: ModelCall) -> bool:
    """True if both the family and the class read `negative_prompt`."""
    if call.signature is not None and not (call.takes("negative_prompt") and "negative_prompt" not in call.row.untaken):
        return False
    return call.architecture is None or call.architecture.negative_prompt


def prompt_parameter(call: ModelCall) -> str | None:
    """Return the parameter of the class's call that the prompt goes into; None when it reads no words."""
    if call.signature is None:
        return "prompt"
    return next((name for name in PROMPT_PARAMETERS if call.takes(name)), None)


@once
def meanings(call: ModelCall) -> dict[str, str]:
    """Return the pipeline's own name of a parameter by the usual name, where the two differ."""
    row = call.architecture
    own_names = {"guidance_scale": row.guidance} if row is not None and row.guidance != "guidance_scale" else {}
    frame_count = next((name for name in FRAME_COUNTS if call.takes(name)), "num_frames")
    if frame_count != "num_frames":
        own_names["num_frames"] = frame_count
    return own_names


@once
def parameters(call: ModelCall) -> dict[str, Schema]:
    """Return the JSON Schema of every parameter that the call takes, with bounds and defaults, by diffusers name.

    Names come from the pipeline's own call signature; where diffusers is not installed, from the architecture table.
    """
    properties: dict[str, Schema] = {}
    for name, (schema, default) in _taken(call).items():
        limited = _property(name, schema, call)
        if default is not None and fits(default, limited):
            limited["default"] = default
        properties[name] = limited
    fit = fit_of(call)
    properties = {name: item for name, item in properties.items() if name not in LISTS or fit.takes(name)}
    if call.row.denoises:
        properties |= sampling_properties(fit)
    properties |= _by_other_names(call, properties)
    if prompt_form(call) is not None:
        properties["prompt_weighting"] = {"type": "string", "enum": [*PROMPT_WEIGHTINGS], "default": "auto"}
        properties["prompt_weighting"]["description"] = _WEIGHTING
    if call.makes_video and call.pipeline and "fps" not in properties:
        properties["fps"] = bounded("fps", {"type": "number"}, 1)
        if "frame_rate" not in properties:
            properties["fps"]["default"] = default_fps(call)
    properties["num_images"] = {"type": "integer", "minimum": 1}
    for name, value in model_defaults(call).items():
        if name in properties:
            properties[name]["default"] = _clamped(value, properties[name])
    return properties


def effective_defaults(properties: Mapping[str, Schema], names: Collection[str]) -> dict[str, JsonValue]:
    """Return the defaults of `names` as in `properties`: those that the pipeline takes, clamped to its bounds."""
    return {name: properties[name]["default"] for name in names if "default" in properties.get(name, {})}


@once
def defaults(call: ModelCall) -> dict[str, JsonValue]:
    """Return the values for an empty request: family < model < Lightning, each as far as the pipeline takes it."""
    return effective_defaults(parameters(call), model_defaults(call))


@once
def model_defaults(call: ModelCall) -> dict[str, JsonValue]:
    """Return the defaults before their bounds; later ones win: pipeline < family < variant < model < Lightning."""
    row, spec, names = call.architecture, call.spec, meanings(call)
    merged = _family_defaults(call, names)
    native = call.detection.native_size
    if not call.from_text:
        merged = {name: value for name, value in merged.items() if name not in ("width", "height")}
    elif (row or native) and (not {"width", "height"} <= merged.keys() or (native is not None and native < 256)):
        merged |= _native_size(call)
    if row is not None:
        merged |= by_meaning(variant_defaults(row.id, call.detection.variant), names)
    merged |= by_meaning(_without_request_fields(spec.defaults), names)
    if call.lightning and spec.lightning is not None:
        merged |= {"num_inference_steps": spec.lightning.steps} | by_meaning(spec.lightning.defaults, names)
    return merged


def _family_defaults(call: ModelCall, names: Mapping[str, str]) -> dict[str, JsonValue]:
    """Return the defaults of the family's row, and of a class that continues a video."""
    row, frames = call.architecture, {key: own_name for key, own_name in names.items() if key == "num_frames"}
    merged = by_meaning(row.defaults, frames) if row else {}
    return merged | ({"overlap_history": call.row.lengthens} if call.row.lengthens else {})


def _without_request_fields(defaults: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in defaults.items() if name not in REQUEST_DEFAULTS}


def _native_size(call: ModelCall) -> dict[str, JsonValue]:
    """Return a square of the model's training size, within its bounds: the best guess where no default is known."""
    size = size_bounds(call.model)
    side = size.nearest(min(size.native, math.isqrt(size.max_pixels)))
    return {"width": side, "height": side}


def by_meaning(values: Mapping[str, JsonValue], names: Mapping[str, str]) -> dict[str, JsonValue]:
    """Return `values` by the pipeline's own names; `names` maps the usual names to them."""
    return {(names[key] if key in names and names[key] not in values else key): item for key, item in values.items()}


def _taken(call: ModelCall) -> dict[str, tuple[Schema, JsonValue]]:
    """Return raw types and the pipeline's own defaults by name, sizes and steps first."""
    schemas = _by_family(call) if call.signature is None else _by_signature(call, call.signature)
    if not call.from_text and call.row.denoises:
        # Where the class takes no size, the image is brought to it beforehand.
        schemas |= {name: ({"type": "integer"}, None) for name in ("width", "height")}
    first = [name for name in ("width", "height", "num_inference_steps") if name in schemas]
    return {name: schemas[name] for name in [*first, *(name for name in schemas if name not in first)]}


def _by_family(call: ModelCall) -> dict[str, tuple[Schema, JsonValue]]:
    """Return the parameters of the call by the architecture table."""
    row = call.architecture
    guidance = row.guidance if row else "guidance_scale"
    schemas: dict[str, tuple[Schema, JsonValue]] = {}
    for name in ("width", "height", "num_inference_steps", guidance, *([] if call.from_text else ["strength"])):
        schemas[name] = ({"type": "number" if name in BOUNDS else "integer"}, None)
    schemas |= {name: ({"type": kind}, None) for name, kind in (base_of(row).parameters if row else {}).items()}
    for name, value in (row.defaults if row else {}).items():
        if name not in schemas and isinstance(value, int | float):
            schemas[name] = ({"type": _json_type(value)}, None)
    return schemas


def _by_signature(call: ModelCall, signature: Mapping[str, CallParameter]) -> dict[str, tuple[Schema, JsonValue]]:
    """Return the parameters of the class's own call that JSON can express and no common field covers."""
    return {
        name: (parameter.schema, parameter.default)
        for name, parameter in signature.items()
        if parameter.schema is not None
        and parameter.schema != {"type": "null"}
        and not DENIED.fullmatch(name)
        and name not in common_fields()
        and name not in call.row.untaken
        and not _lacks_part(name, call)
        and not (name == "strength" and call.from_text)
    }


def _by_other_names(call: ModelCall, properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the parameters that the pipeline has by another name, by the usual name."""
    schemas: dict[str, Schema] = {}
    for name, own_name in meanings(call).items():
        if own_name in properties and name not in properties:
            low, high, _ = BOUNDS[name]
            kind = "integer" if name == "num_frames" else "number"
            text = f"Taken as {own_name}, which is this family's name for it."
            schemas[name] = {"type": kind, "minimum": low, "maximum": high, "description": text}
    return schemas


def _lacks_part(name: str, call: ModelCall) -> bool:
    """True if this parameter is for a component that the repository lacks by its own list."""
    parts = call.detection.parts
    return bool(parts) and name in PART_OF and PART_OF[name] not in parts


def _json_type(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int) else "number"


def _property(name: str, schema: Schema, call: ModelCall) -> Schema:
    if name in ("width", "height"):
        size = size_bounds(call.model)
        text = f"Pixels, a multiple of {size.multiple}; width x height is at most {size.max_pixels:,}."
        bounds: Schema = {"minimum": size.minimum, "maximum": size.maximum, "multipleOf": size.multiple}
        return {"type": "integer"} | bounds | {"description": text}
    steps = step_limit(call.model)
    if name == "num_inference_steps":
        least = int(call.row.least.get(name, 1))
        return {"type": "integer", "minimum": least, "maximum": steps, "description": "Denoising steps."}
    if name == "clip_skip":
        number: Schema = {"type": "integer", "minimum": 0, "maximum": clip_skip_limit(call.model)}
        return {"anyOf": [number, {"type": "null"}], "description": BOUNDS[name][2]}
    limited = bounded(name, schema, steps, call.row)
    if name == "strength" and regenerates_by_strength(call.pipeline):
        limited["description"] = f"{BOUNDS[name][2]} Times num_inference_steps it is at least 1, or 0."
    return limited


def _clamped(value: JsonValue, schema: Schema) -> JsonValue:
    """Return a default moved into the bounds, which `limits` may have made narrower than the family's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(high, int | float) and value > high:
        return high
    return low if isinstance(low, int | float) and value < low else value


@once
def needed_fields(call: ModelCall) -> tuple[str, ...]:
    """Return the common fields without which the task cannot start."""
    # Under another name the prompt is one of several texts, and the pipeline decides which it needs.
    words = ("prompt",) if call.task is not Task.UPSCALING and prompt_parameter(call) == "prompt" else ()
    return words if call.from_text else (*words, *missing_fields(call.slots, call.task, ()))
