"""A model's parameters: their JSON Schema, their defaults, and the check of what a caller sent."""

import difflib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from worker.catalog import architectures
from worker.catalog.architectures import Architecture
from worker.catalog.signatures import BOUNDS, DENIED, Schema, bounded, call_parameters
from worker.catalog.values import check_value, is_valid, nearest_multiple
from worker.core.errors import ParameterOutOfRange, UnknownParameter
from worker.core.model import Detection, Kind, ModelSpec, Task
from worker.core.request import GenerationRequest

LIMIT_KEYS = ("max_side", "max_pixels", "max_steps", "max_images")
REQUEST_DEFAULTS = ("negative_prompt",)  # a model's defaults that fill fields of the request itself

# The picture comes from the caller in these, and so does its size.
FROM_TEXT = frozenset({Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO})

_COMMON = tuple(name for name in GenerationRequest.model_fields if name != "params")
_INSTEAD = {"generator": "seed", "latents": "image", "output_type": "output", "prompt_embeds": "prompt"}


@dataclass(frozen=True, slots=True)
class SizeBounds:
    """Which pictures a model draws, in pixels. A side is a multiple of `multiple` from `minimum` to `maximum`."""

    minimum: int
    maximum: int
    multiple: int
    max_pixels: int
    native: int

    def nearest(self, side: float) -> int:
        """The allowed side that is closest to `side`."""
        return nearest_multiple(side, self.multiple, self.minimum, self.maximum)


def declared(spec: ModelSpec) -> Detection | None:
    """What the registry alone says a model is: enough to check a request before a byte is fetched, or None."""
    row = architecture_of(spec, None)
    if row is None:
        return None
    tasks = spec.tasks or tuple(row.pipelines)
    evidence = (f"models.yaml declares {spec.id} as {row.id}",)
    return Detection(Kind.PIPELINE, "declared", row.id, spec.pipeline, tasks, evidence=evidence)


def architecture_of(spec: ModelSpec, detection: Detection | None) -> Architecture | None:
    """The model's row of the architecture table: what the registry declares, else what was detected."""
    for name in (spec.architecture, detection.architecture if detection else None):
        row = next((row for row in architectures.ARCHITECTURES if row.id == name), None) if name else None
        if row is not None:
            return row
    return None


def pipeline_for(spec: ModelSpec, detection: Detection | None, task: Task) -> str | None:
    """The diffusers class that serves `task`. A class outside the family's row serves every task it is declared for."""
    row = architecture_of(spec, detection)
    own = spec.pipeline or (detection.pipeline if detection else None)
    if row is None or (own is not None and own not in row.pipelines.values() and own not in row.classes):
        return own
    return row.pipelines.get(task, own)


def tasks_of(spec: ModelSpec, detection: Detection | None) -> tuple[Task, ...]:
    """The tasks a model takes: declared, else detected, else those of its family."""
    row = architecture_of(spec, detection)
    return spec.tasks or (detection.tasks if detection else ()) or (tuple(row.pipelines) if row else ())


def takes_negative_prompt(spec: ModelSpec, detection: Detection | None) -> bool:
    """Whether the model's family reads `negative_prompt` at all."""
    row = architecture_of(spec, detection)
    return row is None or row.negative_prompt


def size_bounds(spec: ModelSpec, detection: Detection | None) -> SizeBounds:
    """The sizes a model draws: its family's, moved by `limits`; tiny models may draw tiny pictures."""
    row = architecture_of(spec, detection)
    multiple = row.size_multiple if row else 16
    native = (detection.native_size if detection else None) or (row.native_size if row else 1024)
    max_pixels = int(spec.limits.get("max_pixels", row.max_pixels if row else 2048 * 2048))
    # Up to an aspect of 4:1 at the most pixels: beyond that no family was trained.
    side = int(spec.limits.get("max_side", 2 * math.isqrt(max_pixels)))
    maximum = max(side // multiple, 1) * multiple
    # 4 latent pixels a side are enough where the model itself is tiny; below 64 pixels a real one draws noise.
    minimum = 4 * multiple if native < 256 else -(-max(64, multiple) // multiple) * multiple
    return SizeBounds(min(minimum, maximum), maximum, multiple, max_pixels, min(max(native, minimum), maximum))


def image_limit(spec: ModelSpec, max_images: int) -> int:
    """How many pictures one request for this model may ask for."""
    return min(max_images, int(spec.limits.get("max_images", max_images)))


def step_limit(spec: ModelSpec, detection: Detection | None) -> int:
    """How many denoising steps one picture of this model may take."""
    row = architecture_of(spec, detection)
    return int(spec.limits.get("max_steps", row.max_steps if row else 150))


def parameters(
    spec: ModelSpec,
    detection: Detection | None,
    task: Task,
    *,
    max_images: int,
    schedulers: Sequence[str] = (),
    lightning: bool = False,
) -> dict[str, Schema]:
    """The JSON Schema of every parameter the model takes for `task`, with bounds and defaults, by diffusers name.

    Names come from the pipeline's own call signature; where diffusers is not installed, from the architecture table.
    """
    properties: dict[str, Schema] = {}
    for name, schema, default in _taken(spec, detection, task):
        limited = _property(name, schema, spec, detection)
        if default is not None and is_valid(default, limited):
            limited["default"] = default
        properties[name] = limited
    text = "Sampler by diffusers or A1111 name; the model's own when left out."
    properties["scheduler"] = {"type": "string", "minLength": 1, "maxLength": 64, "description": text}
    if schedulers:
        properties["scheduler"]["examples"] = [*schedulers]
    row = architecture_of(spec, detection)
    if row is not None and row.guidance != "guidance_scale" and row.guidance in properties:
        text = f"Taken as {row.guidance}, which is this family's name for it."
        properties["guidance_scale"] = {"type": "number", "minimum": 0, "maximum": 30, "description": text}
    limit = image_limit(spec, max_images)
    properties["num_images"] = {"type": "integer", "minimum": 1, "maximum": limit}
    for name, value in _defaults(spec, detection, task, lightning).items():
        if name in properties:
            properties[name]["default"] = _clamped(value, properties[name])
    return properties


def effective_defaults(properties: Mapping[str, Schema], given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`given`'s defaults as they stand in `properties`: those the pipeline takes, clamped to its bounds."""
    return {name: properties[name]["default"] for name in given if "default" in properties.get(name, {})}


def defaults(
    spec: ModelSpec, detection: Detection | None, task: Task, *, lightning: bool = False
) -> dict[str, JsonValue]:
    """What the pipeline gets when a request says nothing: family < model < Lightning, each where it is taken."""
    properties = parameters(spec, detection, task, max_images=1, lightning=lightning)
    return effective_defaults(properties, _defaults(spec, detection, task, lightning))


def _defaults(spec: ModelSpec, detection: Detection | None, task: Task, lightning: bool) -> dict[str, JsonValue]:
    row = architecture_of(spec, detection)
    merged: dict[str, JsonValue] = dict(row.defaults) if row else {}
    native = detection.native_size if detection else None
    if task not in FROM_TEXT:
        merged = {name: value for name, value in merged.items() if name not in ("width", "height")}
    elif "width" not in merged or "height" not in merged or (native is not None and native < 256):
        size = size_bounds(spec, detection)
        side = size.nearest(min(size.native, math.isqrt(size.max_pixels)))
        merged |= {"width": side, "height": side}
    own = {name: value for name, value in spec.defaults.items() if name not in REQUEST_DEFAULTS}
    merged |= _by_meaning(own, row)
    if lightning and spec.lightning is not None:
        merged |= {"num_inference_steps": spec.lightning.steps} | _by_meaning(spec.lightning.defaults, row)
    return merged


def _by_meaning(values: Mapping[str, JsonValue], row: Architecture | None) -> dict[str, JsonValue]:
    """`guidance_scale` under the name that the family has for it: most callers know no other."""
    name = row.guidance if row else "guidance_scale"
    return {(name if key == "guidance_scale" and name not in values else key): item for key, item in values.items()}


def _taken(spec: ModelSpec, detection: Detection | None, task: Task) -> Iterator[tuple[str, Schema, JsonValue]]:
    """Names, raw types and the pipeline's own defaults, sizes and steps first."""
    pipeline = pipeline_for(spec, detection, task)
    signature = call_parameters(pipeline) if pipeline else None
    found: dict[str, tuple[Schema, JsonValue]] = {}
    if signature is None:
        row = architecture_of(spec, detection)
        guidance = row.guidance if row else "guidance_scale"
        for name in ("width", "height", "num_inference_steps", guidance, *([] if task in FROM_TEXT else ["strength"])):
            found[name] = ({"type": "number" if name in BOUNDS else "integer"}, None)
        if row is not None and row.adapter_base in ("sd1", "sd2", "sdxl"):
            found |= {"eta": ({"type": "number"}, None), "guidance_rescale": ({"type": "number"}, None)}
            found["clip_skip"] = ({"type": "integer"}, None)
        for name, value in (row.defaults if row else {}).items():
            if name not in found and isinstance(value, int | float):
                found[name] = ({"type": _json_type(value)}, None)
    for parameter in (signature or {}).values():
        if parameter.schema is None or parameter.schema == {"type": "null"} or DENIED.fullmatch(parameter.name):
            continue
        if parameter.name != "strength" or task not in FROM_TEXT:
            found[parameter.name] = (parameter.schema, parameter.default)
    if task not in FROM_TEXT:  # where the class takes no size, the picture is brought to it beforehand
        found |= {name: ({"type": "integer"}, None) for name in ("width", "height")}
    first = [name for name in ("width", "height", "num_inference_steps") if name in found]
    for name in [*first, *(name for name in found if name not in first)]:
        yield name, *found[name]


def _json_type(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int) else "number"


def _property(name: str, schema: Schema, spec: ModelSpec, detection: Detection | None) -> Schema:
    if name in ("width", "height"):
        size = size_bounds(spec, detection)
        text = f"Pixels, a multiple of {size.multiple}; width x height is at most {size.max_pixels:,}."
        bounds: Schema = {"minimum": size.minimum, "maximum": size.maximum, "multipleOf": size.multiple}
        return {"type": "integer"} | bounds | {"description": text}
    steps = step_limit(spec, detection)
    if name == "num_inference_steps":
        return {"type": "integer", "minimum": 1, "maximum": steps, "description": "Denoising steps."}
    return bounded(name, schema, steps)


def _clamped(value: JsonValue, schema: Schema) -> JsonValue:
    """A default moved into the bounds, which `limits` may have made narrower than the family's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(high, int | float) and value > high:
        return high
    return low if isinstance(low, int | float) and value < low else value


def model_schema(
    spec: ModelSpec, detection: Detection | None, *, max_images: int, max_loras: int, schedulers: Sequence[str] = ()
) -> Schema:
    """The JSON Schema (2020-12) of a request for this model: the common fields and the parameters of all its tasks."""
    tasks = tasks_of(spec, detection)
    generated = GenerationRequest.model_json_schema()
    properties: dict[str, Schema] = {
        "action": {"const": "generate", "description": "What a request is when it says none."}
    }
    properties |= {name: dict(generated["properties"][name]) for name in _COMMON}
    lightning = spec.lightning is not None
    for task in tasks:
        taken = parameters(spec, detection, task, max_images=max_images, schedulers=schedulers, lightning=lightning)
        for name, own in taken.items():  # the first task's defaults are the ones shown
            properties[name] = {**own, **properties[name]} if name in properties else own
    properties["num_images"]["maximum"] = image_limit(spec, max_images)
    properties["model"]["default"] = spec.id
    properties["task"] = {"type": "string", "enum": [*tasks], "description": properties["task"]["description"]}
    lora: JsonValue = {"anyOf": [{"$ref": "#/$defs/LoraSpec"}, {"type": "string", "minLength": 1}]}
    properties["loras"] |= {"maxItems": max_loras, "items": lora}
    if "negative_prompt" in spec.defaults:
        properties["negative_prompt"]["default"] = spec.defaults["negative_prompt"]
    if not takes_negative_prompt(spec, detection):
        del properties["negative_prompt"]
    if tasks and FROM_TEXT.issuperset(tasks):
        del properties["image"]
    needed = [
        name for name in ("prompt", "image") if tasks and all(name in _needs(spec, detection, task) for task in tasks)
    ]
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A request for {spec.id}",
        "type": "object",
        "properties": {name: properties[name] for name in properties},
        "required": [*needed],
        "additionalProperties": False,
        "$defs": generated["$defs"],
        "examples": [_example(spec, properties, needed)],
    }
    if spec.description:
        schema["description"] = spec.description
    if "strength" in properties and "image" not in needed:
        schema["dependentRequired"] = {"strength": ["image"]}
    return schema


def _needs(spec: ModelSpec, detection: Detection | None, task: Task) -> tuple[str, ...]:
    """The common fields without which `task` cannot start."""
    signature = call_parameters(pipeline_for(spec, detection, task) or "")
    prompt = () if task is Task.UPSCALING or (signature is not None and "prompt" not in signature) else ("prompt",)
    return prompt if task in FROM_TEXT else (*prompt, "image")


def _example(spec: ModelSpec, properties: Mapping[str, Schema], needed: Collection[str]) -> Schema:
    words: Schema = {"prompt": "a lighthouse at dusk, oil painting", "image": "https://example.com/input.png"}
    shown = ("width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale")
    chosen = {name: properties[name]["default"] for name in shown if "default" in properties.get(name, {})}
    return {"model": spec.id} | {name: words[name] for name in needed} | chosen | {"seed": 42}


def check_parameters(
    raw: Mapping[str, JsonValue],
    spec: ModelSpec,
    detection: Detection | None,
    task: Task,
    *,
    max_images: int,
    schedulers: Sequence[str] = (),
    aliases: Collection[str] = (),
    lightning: bool = False,
) -> dict[str, JsonValue]:
    """The effective parameters: `raw` checked against the model's schema, on top of its defaults.

    Raises UnknownParameter or ParameterOutOfRange, naming the field. `aliases` only widen the "did you mean".
    """
    properties = parameters(spec, detection, task, max_images=max_images, schedulers=schedulers, lightning=lightning)
    for name in raw:
        if name not in properties:
            raise unsupported(str(name), spec, detection, task, aliases=aliases)
    checked = {name: check_value(name, value, properties[name]) for name, value in raw.items()}
    row = architecture_of(spec, detection)
    if row is not None and row.guidance != "guidance_scale" and {"guidance_scale", row.guidance} <= checked.keys():
        text = f"guidance_scale means {row.guidance} for {row.title}; send one of the two."
        raise ParameterOutOfRange(text, field="guidance_scale")
    merged = effective_defaults(properties, _defaults(spec, detection, task, lightning)) | _by_meaning(checked, row)
    _check_together(merged, spec, detection)
    return merged


def check_defaults(spec: ModelSpec) -> None:
    """Raise what a request would raise if it sent the model's own `defaults`, so that a bad registry fails at start."""
    detection, tasks = declared(spec), tasks_of(spec, None) or (Task.TEXT_TO_IMAGE,)
    row = architecture_of(spec, None)
    merged: dict[str, Schema] = {}
    for task in tasks:
        merged |= parameters(spec, detection, task, max_images=1)
    # Without a family or without diffusers here nothing says which further names the pipeline takes.
    complete = any(call_parameters(pipeline_for(spec, detection, task) or "") for task in tasks)
    for name, value in {**spec.defaults, **(spec.lightning.defaults if spec.lightning else {})}.items():
        if name in REQUEST_DEFAULTS or (row is None and name in ("width", "height")):
            check_value(
                name, value, {"type": "string"} if name in REQUEST_DEFAULTS else {"type": "integer", "minimum": 1}
            )
        elif name in merged and name != "num_images":
            check_value(name, value, merged[name])
        elif complete or _near(name, merged):
            raise unsupported(name, spec, detection, tasks[0])
    for task in tasks if row else ():  # together, too: a size over max_pixels would refuse every request
        check_parameters({}, spec, detection, task, max_images=1)


def unsupported(
    name: str, spec: ModelSpec, detection: Detection | None, task: Task, *, aliases: Collection[str] = ()
) -> UnknownParameter:
    """The error for a field that this model does not take for `task`: why, and what to send instead."""
    name = name[:64]
    shown = json.dumps(name)[1:-1] or "an empty name"
    row = architecture_of(spec, detection)
    family = f"{spec.id} ({row.title})" if row else spec.id
    own = parameters(spec, detection, task, max_images=1)
    others = [other for other in tasks_of(spec, detection) if other is not task]
    elsewhere = [other for other in others if name in parameters(spec, detection, other, max_images=1)]
    near = _near(name, [*own, *_COMMON, *aliases])
    if elsewhere:
        text = f"{shown} is not a parameter of {task} by {family}, only of {' and '.join(elsewhere)}"
        fix = "send an image" if task in FROM_TEXT else "send no image"
        text += f"; leave {shown} out, or {fix}."
    elif name == "strength" and task in FROM_TEXT:
        text = f"strength is not a parameter of {task} by {family}: it needs an input image; leave it out."
    elif name in ("guidance_scale", "true_cfg_scale") and row is not None and row.guidance in own:
        text = f"{name} is not a parameter of {family}; send {row.guidance} instead."
    elif DENIED.fullmatch(name) and name not in _COMMON and name not in _INSTEAD and near is None:
        text = f"{shown} is set by the worker and cannot be sent to {family}; leave it out."
    elif name in _INSTEAD:
        text = f"{name} is set by the worker and cannot be sent to {family}; send {_INSTEAD[name]} instead."
    elif name in BOUNDS or name in _COMMON or name == "negative_prompt":
        text = f"{name} is a parameter of other model families, not of {family}; leave it out."
    elif near is not None:
        text = f"{shown} is not a parameter of {task} by {family}; did you mean {near}?"
    else:
        text = f"{shown} is not a parameter of {task} by {family}; it takes {', '.join(own)}."
    return UnknownParameter(text, field=shown, hint=f"Did you mean {near}?" if near not in (None, name) else None)


def _near(name: str, known: Iterable[str]) -> str | None:
    names, wanted = list(known), name[:64].lower()
    starts = [full for full in names if len(wanted) >= 3 and full.startswith(wanted)]
    return next(iter(difflib.get_close_matches(wanted, names, n=1, cutoff=0.7) or starts), None)


def _check_together(merged: Mapping[str, JsonValue], spec: ModelSpec, detection: Detection | None) -> None:
    """Bounds that no single field has."""
    width, height, limit = merged.get("width"), merged.get("height"), size_bounds(spec, detection).max_pixels
    if isinstance(width, int) and isinstance(height, int) and width * height > limit:
        text = f"width x height must be at most {limit:,} pixels; {width} x {height} is {width * height:,}"
        raise ParameterOutOfRange(f"{text}: lower width or height.", field="width", details={"max_pixels": limit})
    steps, strength = merged.get("num_inference_steps"), merged.get("strength")
    if isinstance(steps, int) and isinstance(strength, int | float) and int(steps * strength) < 1:
        text = f"strength x num_inference_steps must be at least 1; {strength} x {steps} leaves no step to run"
        raise ParameterOutOfRange(f"{text}: raise one of them.", field="strength")
