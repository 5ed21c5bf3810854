"""A model's parameters as JSON Schema, with their bounds and defaults."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from worker.catalog.architectures import variant_defaults
from worker.catalog.calls.adapters import adapter_fields, all_adapter_fields
from worker.catalog.calls.controls import control_call, controlled_rows, known_modes, most_controls
from worker.catalog.calls.inputs import FIELDS, Slot, missing_fields
from worker.catalog.calls.refusals import PART_OF, UNTAKEN
from worker.catalog.calls.sampling import LISTS, fit_of, sampling_properties
from worker.catalog.calls.signatures import BOUNDS, DENIED, Schema, bounded, call_parameters
from worker.catalog.calls.sizes import default_fps, image_limit, size_bounds, step_limit
from worker.catalog.calls.tasks import FROM_TEXT, architecture_of, draws_video, media_slots, pipeline_for, tasks_of
from worker.catalog.calls.values import is_valid
from worker.catalog.calls.words import clip_skip_limit, prompt_form
from worker.catalog.kinds.companions import UPSCALE_PIPELINE
from worker.core.job import PROMPT_PARAMETERS
from worker.core.model import Detection, ModelSpec, Task
from worker.core.prompt import PROMPT_WEIGHTINGS
from worker.core.request import PICTURE_FORMATS, VIDEO_FORMATS, GenerationRequest

REQUEST_DEFAULTS = ("negative_prompt",)  # a model's defaults that fill fields of the request itself
COMMON = tuple(name for name in GenerationRequest.model_fields if name != "params")
# How pipelines call the number of frames, where it is not num_frames.
_FRAMES = ("video_length", "frames")
_WEIGHTING = (
    "Whether (word), [word], (word:1.3) and BREAK weigh and part the prompts and long ones are read in chunks, as in "
    "AUTOMATIC1111's web UI: a1111 always, none never, auto where a prompt has such marks or is too long. Models that "
    "read prose with a T5 take only (word:1.3) and BREAK for a mark under auto."
)


def takes_negative_prompt(spec: ModelSpec, detection: Detection | None, task: Task | None = None) -> bool:
    """Whether the model reads `negative_prompt`: its family does, and for `task` so does the class."""
    row = architecture_of(spec, detection)
    pipeline = pipeline_for(spec, detection, task) or "" if task else ""
    signature = call_parameters(pipeline)
    if signature is not None and ("negative_prompt" not in signature or "negative_prompt" in UNTAKEN.get(pipeline, ())):
        return False
    return row is None or row.negative_prompt


def prompt_parameter(class_name: str | None) -> str | None:
    """The parameter of the class's call that the prompt goes into; None when it reads no words."""
    signature = call_parameters(class_name or "")
    if signature is None:
        return "prompt"
    return next((name for name in PROMPT_PARAMETERS if name in signature), None)


def meanings(spec: ModelSpec, detection: Detection | None, task: Task) -> dict[str, str]:
    """What most callers call a parameter -> what this model's pipeline does, where the two differ."""
    row = architecture_of(spec, detection)
    found = {"guidance_scale": row.guidance} if row is not None and row.guidance != "guidance_scale" else {}
    signature = call_parameters(pipeline_for(spec, detection, task) or "") or {}
    own = next((name for name in _FRAMES if name in signature), None)
    if own and "num_frames" not in signature:
        found["num_frames"] = own
    return found


def parameters(
    spec: ModelSpec,
    detection: Detection | None,
    task: Task,
    *,
    max_images: int,
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
    fit = fit_of(spec, detection, task)
    properties = {name: item for name, item in properties.items() if name not in LISTS or fit.takes(name)}
    if pipeline_for(spec, detection, task) != UPSCALE_PIPELINE:
        properties |= sampling_properties(fit)
    for name, own in meanings(spec, detection, task).items():
        if own in properties and name not in properties:
            text = f"Taken as {own}, which is this family's name for it."
            low, high, _ = BOUNDS[name]
            properties[name] = {
                "type": "integer" if name == "num_frames" else "number",
                "minimum": low,
                "maximum": high,
            }
            properties[name]["description"] = text
    pipeline = pipeline_for(spec, detection, task)
    if prompt_form(spec, detection, pipeline) is not None:
        properties["prompt_weighting"] = {"type": "string", "enum": [*PROMPT_WEIGHTINGS], "default": "auto"}
        properties["prompt_weighting"]["description"] = _WEIGHTING
    if draws_video(pipeline, task) and pipeline is not None and "fps" not in properties:
        properties["fps"] = bounded("fps", {"type": "number"}, 1)
        if "frame_rate" not in properties:
            properties["fps"]["default"] = default_fps(spec, detection, pipeline)
    limit = image_limit(spec, max_images)
    properties["num_images"] = {"type": "integer", "minimum": 1, "maximum": limit}
    for name, value in model_defaults(spec, detection, task, lightning).items():
        if name in properties:
            properties[name]["default"] = _clamped(value, properties[name])
    return properties


def effective_defaults(properties: Mapping[str, Schema], given: Collection[str]) -> dict[str, JsonValue]:
    """The defaults of `given` as they stand in `properties`: those the pipeline takes, clamped to its bounds."""
    return {name: properties[name]["default"] for name in given if "default" in properties.get(name, {})}


def defaults(
    spec: ModelSpec, detection: Detection | None, task: Task, *, lightning: bool = False
) -> dict[str, JsonValue]:
    """What the pipeline gets when a request says nothing: family < model < Lightning, each where it is taken."""
    properties = parameters(spec, detection, task, max_images=1, lightning=lightning)
    return effective_defaults(properties, model_defaults(spec, detection, task, lightning))


def model_defaults(spec: ModelSpec, detection: Detection | None, task: Task, lightning: bool) -> dict[str, JsonValue]:
    """Defaults in the order of their say: pipeline < family < variant < model < Lightning. Not yet bounded."""
    row = architecture_of(spec, detection)
    names = meanings(spec, detection, task)
    merged = by_meaning(row.defaults, {key: own for key, own in names.items() if key == "num_frames"}) if row else {}
    native = detection.native_size if detection else None
    if task not in FROM_TEXT:
        merged = {name: value for name, value in merged.items() if name not in ("width", "height")}
    elif (row or native) and (not {"width", "height"} <= merged.keys() or (native is not None and native < 256)):
        # Where nothing tells, the pipeline's own size is the best guess.
        size = size_bounds(spec, detection)
        side = size.nearest(min(size.native, math.isqrt(size.max_pixels)))
        merged |= {"width": side, "height": side}
    if row is not None and detection is not None:
        merged |= by_meaning(variant_defaults(row.id, detection.variant), names)
    own = {name: value for name, value in spec.defaults.items() if name not in REQUEST_DEFAULTS}
    merged |= by_meaning(own, names)
    if lightning and spec.lightning is not None:
        merged |= {"num_inference_steps": spec.lightning.steps} | by_meaning(spec.lightning.defaults, names)
    return merged


def by_meaning(values: Mapping[str, JsonValue], names: Mapping[str, str]) -> dict[str, JsonValue]:
    """`values` under the pipeline's own names: most callers know no others."""
    return {(names[key] if key in names and names[key] not in values else key): item for key, item in values.items()}


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
    untaken = UNTAKEN.get(pipeline or "", frozenset())
    for parameter in (signature or {}).values():
        if parameter.schema is None or parameter.schema == {"type": "null"} or DENIED.fullmatch(parameter.name):
            continue
        if parameter.name in untaken or parameter.name in COMMON or _lacks_part(parameter.name, detection):
            continue
        if parameter.name != "strength" or task not in FROM_TEXT:
            found[parameter.name] = (parameter.schema, parameter.default)
    if (
        task not in FROM_TEXT and pipeline != UPSCALE_PIPELINE
    ):  # where the class takes no size, the picture is brought to it beforehand
        found |= {name: ({"type": "integer"}, None) for name in ("width", "height")}
    first = [name for name in ("width", "height", "num_inference_steps") if name in found]
    for name in [*first, *(name for name in found if name not in first)]:
        yield name, *found[name]


def _lacks_part(name: str, detection: Detection | None) -> bool:
    """Whether this parameter is for a component that the repository says it does not have."""
    parts = detection.parts if detection else ()
    return bool(parts) and name in PART_OF and PART_OF[name] not in parts


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
    if name == "clip_skip":
        number: Schema = {"type": "integer", "minimum": 0, "maximum": clip_skip_limit(spec, detection)}
        return {"anyOf": [number, {"type": "null"}], "description": BOUNDS[name][2]}
    return bounded(name, schema, steps)


def _clamped(value: JsonValue, schema: Schema) -> JsonValue:
    """A default moved into the bounds, which `limits` may have made narrower than the family's."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(high, int | float) and value > high:
        return high
    return low if isinstance(low, int | float) and value < low else value


def model_schema(spec: ModelSpec, detection: Detection | None, *, max_images: int, max_loras: int) -> Schema:
    """The JSON Schema (2020-12) of a request for this model: the common fields and the parameters of all its tasks."""
    tasks = tasks_of(spec, detection)
    generated = GenerationRequest.model_json_schema()
    properties: dict[str, Schema] = {
        "action": {"const": "generate", "description": "What a request is when it says none."}
    }
    properties |= {name: dict(generated["properties"][name]) for name in COMMON}
    lightning = spec.lightning is not None
    for task in tasks:
        taken = parameters(spec, detection, task, max_images=max_images, lightning=lightning)
        for name, own in taken.items():  # the first task's defaults are the ones shown
            properties[name] = {**own, **properties[name]} if name in properties else own
    properties["num_images"]["maximum"] = image_limit(spec, max_images)
    properties["model"]["default"] = spec.id
    properties["task"] = {"type": "string", "enum": [*tasks], "description": properties["task"]["description"]}
    lora: JsonValue = {"anyOf": [{"$ref": "#/$defs/LoraSpec"}, {"type": "string", "minLength": 1}]}
    properties["loras"] |= {"maxItems": max_loras, "items": lora}
    for name, kind in (("refiner", "RefinerSpec"), ("upscale", "UpscaleSpec")):  # a reference alone will do
        properties[name] = {
            "anyOf": [{"$ref": f"#/$defs/{kind}"}, {"type": "string", "minLength": 1}],
            "description": properties[name]["description"],
        }
    if pipeline_for(spec, detection, Task.UPSCALING) == UPSCALE_PIPELINE:
        del properties["loras"]
    for name, kind in (("embeddings", "EmbeddingSpec"), ("hypernetworks", "HypernetworkSpec")):
        properties[name]["items"] = {"anyOf": [{"$ref": f"#/$defs/{kind}"}, {"type": "string", "minLength": 1}]}
    for name in ("images", "control_images", "video"):  # one may be sent without a list around it
        text = properties[name].pop("description")
        properties[name] = {"anyOf": [properties[name], {"type": "string"}], "description": text}
    if "negative_prompt" in spec.defaults:
        properties["negative_prompt"]["default"] = spec.defaults["negative_prompt"]
    if not any(takes_negative_prompt(spec, detection, task) for task in tasks or (Task.TEXT_TO_IMAGE,)):
        del properties["negative_prompt"]
    offered = {field for task in tasks for field in adapter_fields(spec, detection, task)}
    properties = {
        name: item for name, item in properties.items() if name in offered or name not in all_adapter_fields()
    }
    if Task.INPAINTING not in tasks:
        del properties["outpaint"]
    properties = _with_media(properties, spec, detection)
    depending = (
        _with_controls(properties, generated["$defs"], spec, detection, tasks) if "controlnets" in offered else ()
    )
    output = generated["$defs"]["OutputOptions"]["properties"]["format"]
    output["anyOf"][0]["enum"] = _formats(spec, detection)
    needed = [
        name
        for name in ("prompt", *properties)
        if tasks and all(name in needed_fields(spec, detection, task) for task in tasks)
    ]
    needed = [*dict.fromkeys(needed)]
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A request for {spec.id}",
        "type": "object",
        "properties": {name: properties[name] for name in properties},
        "required": [name for name in needed if name != "mask_image" or "outpaint" not in properties],
        "additionalProperties": False,
        "$defs": generated["$defs"],
        "examples": [_example(spec, properties, needed)],
    }
    if spec.description:
        schema["description"] = spec.description
    dependent: Schema = {name: ["controlnets"] for name in depending}
    if "image" not in needed:
        # What starts from a video has a strength too.
        starts = ("outpaint",) if "video" in properties else ("strength", "outpaint")
        dependent |= {name: ["image"] for name in starts if name in properties}
    if "mask_image" in needed and "outpaint" in properties:  # whose margins are one
        schema["anyOf"] = [{"required": ["mask_image"]}, {"required": ["outpaint"]}]
    if dependent:
        schema["dependentRequired"] = dependent
    return schema


def _with_controls(
    properties: dict[str, Schema],
    objects: dict[str, Any],
    spec: ModelSpec,
    detection: Detection | None,
    tasks: Sequence[Task],
) -> tuple[str, ...]:
    """Write into `properties` what `controlnets` may hold; returns the parameters that come with them."""
    rows = [row for task in tasks for row in controlled_rows(spec, detection, task)]
    item: Schema = {"anyOf": [{"$ref": "#/$defs/ControlNetSpec"}, {"type": "string", "minLength": 1}]}
    properties["controlnets"] |= {"items": item, "maxItems": most_controls(rows)}
    fields, modes = objects["ControlNetSpec"]["properties"], known_modes(rows)
    if modes:
        fields["mode"]["anyOf"][0] = {"type": "string", "enum": [*modes]}
    else:
        del fields["mode"]
    added: dict[str, Schema] = {}
    for task in tasks:
        for row in controlled_rows(spec, detection, task):
            told = {*control_call(row.pipeline)}
            called = spec.model_copy(update={"pipeline": row.pipeline, "tasks": (task,)})
            own = parameters(called, detection, task, max_images=1)
            added |= {name: item for name, item in own.items() if name not in properties and name not in told}
    properties |= added
    return tuple(added)


def needed_fields(spec: ModelSpec, detection: Detection | None, task: Task) -> tuple[str, ...]:
    """The common fields without which `task` cannot start."""
    pipeline = pipeline_for(spec, detection, task)
    # Under another name it is one of several texts, and the pipeline says which it needs.
    words = ("prompt",) if task is not Task.UPSCALING and prompt_parameter(pipeline) == "prompt" else ()
    if task in FROM_TEXT:
        return words
    return (*words, *missing_fields(media_slots(pipeline, task), task, ()))


def _with_media(properties: Mapping[str, Schema], spec: ModelSpec, detection: Detection | None) -> dict[str, Schema]:
    """`properties` with the media that the model's tasks take and without all others."""
    taken: dict[str, Schema] = {}
    for task in tasks_of(spec, detection):
        slots = media_slots(pipeline_for(spec, detection, task), task)
        for slot in slots if task not in FROM_TEXT else [slot for slot in slots if not slot.fields]:
            taken |= _media_properties(slot)
    kept = {name: item for name, item in properties.items() if name not in FIELDS or name in taken}
    return kept | {name: item for name, item in taken.items() if name not in properties}


def _media_properties(slot: Slot) -> dict[str, Schema]:
    fields = slot.fields if slot.several else tuple(name for name in slot.fields if not name.endswith("images"))
    text = f"For {slot.parameter} of the pipeline, sent like image."
    one: Schema = {"type": "string"}
    own: Schema = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]} if slot.several else one
    found: dict[str, Schema] = {name: {} for name in fields}
    return found | {slot.parameter: {**own, "description": text}}


def _formats(spec: ModelSpec, detection: Detection | None) -> list[JsonValue]:
    tasks = tasks_of(spec, detection)
    videos = [draws_video(pipeline_for(spec, detection, task), task) for task in tasks]
    formats = (*(() if videos and all(videos) else PICTURE_FORMATS), *(VIDEO_FORMATS if any(videos) else ()))
    return [*dict.fromkeys(formats)]


def _example(spec: ModelSpec, properties: Mapping[str, Schema], needed: Collection[str]) -> Schema:
    words: Schema = {"prompt": "a lighthouse at dusk, oil painting", "video": "https://example.com/input.mp4"}
    shown = ("width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale")
    chosen = {name: properties[name]["default"] for name in shown if "default" in properties.get(name, {})}
    return (
        {"model": spec.id}
        | {name: words.get(name, f"https://example.com/{name}.png") for name in needed}
        | chosen
        | {"seed": 42}
    )
