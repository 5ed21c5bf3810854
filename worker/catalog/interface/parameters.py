"""The parameters that a model takes for a task, as JSON Schema with bounds and defaults."""

import math
from collections.abc import Collection, Mapping

from pydantic import JsonValue

from worker.catalog.architectures import base_of, variant_defaults
from worker.catalog.call import ModelCall, once
from worker.catalog.classes.inputs import missing_fields
from worker.catalog.classes.refusals import PART_OF
from worker.catalog.classes.signatures import DENIED, CallParameter, Schema, redraws_by_strength
from worker.catalog.interface.bounds import BOUNDS, bounded
from worker.catalog.interface.prompt_encoding import clip_skip_limit, prompt_form
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sampling import LISTS, fit_of, sampling_properties
from worker.catalog.interface.sizes import FRAME_COUNTS, default_fps, size_bounds, step_limit
from worker.catalog.interface.values import is_valid
from worker.core.job import PROMPT_PARAMETERS
from worker.core.model import Task
from worker.core.prompt import PROMPT_WEIGHTINGS

REQUEST_DEFAULTS = ("negative_prompt",)  # a model's defaults that fill fields of the request itself
_WEIGHTING = (
    "Whether (word), [word], (word:1.3) and BREAK weigh and part the prompts and long ones are read in chunks, as in "
    "AUTOMATIC1111's web UI: a1111 always, none never, auto where a prompt has such marks or is too long. Models that "
    "read prose with a T5 take only (word:1.3) and BREAK for a mark under auto."
)


@once
def takes_negative_prompt(call: ModelCall) -> bool:
    """Whether `negative_prompt` is read: by the family and by the class."""
    if call.signature is not None and not (call.takes("negative_prompt") and "negative_prompt" not in call.row.untaken):
        return False
    return call.architecture is None or call.architecture.negative_prompt


def prompt_parameter(call: ModelCall) -> str | None:
    """The parameter of the class's call that the prompt goes into; None when it reads no words."""
    if call.signature is None:
        return "prompt"
    return next((name for name in PROMPT_PARAMETERS if call.takes(name)), None)


@once
def meanings(call: ModelCall) -> dict[str, str]:
    """What most callers call a parameter -> what this model's pipeline does, where the two differ."""
    row = call.architecture
    found = {"guidance_scale": row.guidance} if row is not None and row.guidance != "guidance_scale" else {}
    own = next((name for name in FRAME_COUNTS if call.takes(name)), "num_frames")
    if own != "num_frames":
        found["num_frames"] = own
    return found


@once
def parameters(call: ModelCall) -> dict[str, Schema]:
    """The JSON Schema of every parameter that the call takes, with bounds and defaults, by diffusers name.

    Names come from the pipeline's own call signature; where diffusers is not installed, from the architecture table.
    """
    properties: dict[str, Schema] = {}
    for name, (schema, default) in _taken(call).items():
        limited = _property(name, schema, call)
        if default is not None and is_valid(default, limited):
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


def effective_defaults(properties: Mapping[str, Schema], given: Collection[str]) -> dict[str, JsonValue]:
    """The defaults of `given` as they stand in `properties`: those the pipeline takes, clamped to its bounds."""
    return {name: properties[name]["default"] for name in given if "default" in properties.get(name, {})}


@once
def defaults(call: ModelCall) -> dict[str, JsonValue]:
    """What the pipeline gets when a request says nothing: family < model < Lightning, each where it is taken."""
    return effective_defaults(parameters(call), model_defaults(call))


@once
def model_defaults(call: ModelCall) -> dict[str, JsonValue]:
    """Defaults in the order of their say: pipeline < family < variant < model < Lightning. Not yet bounded."""
    row, spec, names = call.architecture, call.spec, meanings(call)
    merged = by_meaning(row.defaults, {key: own for key, own in names.items() if key == "num_frames"}) if row else {}
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


def _without_request_fields(defaults: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in defaults.items() if name not in REQUEST_DEFAULTS}


def _native_size(call: ModelCall) -> dict[str, JsonValue]:
    """A square of the size that the model was trained for, within its bounds: the best guess where nothing tells."""
    size = size_bounds(call.model)
    side = size.nearest(min(size.native, math.isqrt(size.max_pixels)))
    return {"width": side, "height": side}


def by_meaning(values: Mapping[str, JsonValue], names: Mapping[str, str]) -> dict[str, JsonValue]:
    """`values` under the pipeline's own names: most callers know no others."""
    return {(names[key] if key in names and names[key] not in values else key): item for key, item in values.items()}


def _taken(call: ModelCall) -> dict[str, tuple[Schema, JsonValue]]:
    """Names to raw types and the pipeline's own defaults, sizes and steps first."""
    found = _by_family(call) if call.signature is None else _by_signature(call, call.signature)
    if not call.from_text and call.row.denoises:
        # Where the class takes no size, the image is brought to it beforehand.
        found |= {name: ({"type": "integer"}, None) for name in ("width", "height")}
    first = [name for name in ("width", "height", "num_inference_steps") if name in found]
    return {name: found[name] for name in [*first, *(name for name in found if name not in first)]}


def _by_family(call: ModelCall) -> dict[str, tuple[Schema, JsonValue]]:
    """What the architecture table says that the call takes."""
    row = call.architecture
    guidance = row.guidance if row else "guidance_scale"
    found: dict[str, tuple[Schema, JsonValue]] = {}
    for name in ("width", "height", "num_inference_steps", guidance, *([] if call.from_text else ["strength"])):
        found[name] = ({"type": "number" if name in BOUNDS else "integer"}, None)
    found |= {name: ({"type": kind}, None) for name, kind in (base_of(row).parameters if row else {}).items()}
    for name, value in (row.defaults if row else {}).items():
        if name not in found and isinstance(value, int | float):
            found[name] = ({"type": _json_type(value)}, None)
    return found


def _by_signature(call: ModelCall, signature: Mapping[str, CallParameter]) -> dict[str, tuple[Schema, JsonValue]]:
    """What the class's own call says that it takes, as far as JSON can say it and nothing else does."""
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
    """What can be sent by the name that most callers use, and is the pipeline's by another."""
    found: dict[str, Schema] = {}
    for name, own in meanings(call).items():
        if own in properties and name not in properties:
            low, high, _ = BOUNDS[name]
            kind = "integer" if name == "num_frames" else "number"
            text = f"Taken as {own}, which is this family's name for it."
            found[name] = {"type": kind, "minimum": low, "maximum": high, "description": text}
    return found


def _lacks_part(name: str, call: ModelCall) -> bool:
    """Whether this parameter is for a component that the repository says it does not have."""
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
        return {"type": "integer", "minimum": 1, "maximum": steps, "description": "Denoising steps."}
    if name == "clip_skip":
        number: Schema = {"type": "integer", "minimum": 0, "maximum": clip_skip_limit(call.model)}
        return {"anyOf": [number, {"type": "null"}], "description": BOUNDS[name][2]}
    found = bounded(name, schema, steps)
    if name == "strength" and redraws_by_strength(call.pipeline):
        found["description"] = f"{BOUNDS[name][2]} Times num_inference_steps it is at least 1, or 0."
    return found


def _clamped(value: JsonValue, schema: Schema) -> JsonValue:
    """A default moved into the bounds, which `limits` may have made narrower than the family's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(high, int | float) and value > high:
        return high
    return low if isinstance(low, int | float) and value < low else value


@once
def needed_fields(call: ModelCall) -> tuple[str, ...]:
    """The common fields without which the task cannot start."""
    # Under another name it is one of several texts, and the pipeline says which it needs.
    words = ("prompt",) if call.task is not Task.UPSCALING and prompt_parameter(call) == "prompt" else ()
    return words if call.from_text else (*words, *missing_fields(call.slots, call.task, ()))
