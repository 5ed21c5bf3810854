"""The parameters that a model takes for a task, as JSON Schema with bounds and defaults."""

import math
from collections.abc import Collection, Iterator, Mapping

from pydantic import JsonValue

from worker.catalog.architectures import base_of, variant_defaults
from worker.catalog.classes.inputs import missing_fields
from worker.catalog.classes.refusals import PART_OF
from worker.catalog.classes.signatures import DENIED, Schema, call_parameters, redraws_by_strength
from worker.catalog.classes.tasks import FROM_TEXT, draws_video, media_slots
from worker.catalog.interface.bounds import BOUNDS, bounded
from worker.catalog.interface.prompt_encoding import clip_skip_limit, prompt_form
from worker.catalog.interface.sampling import LISTS, fit_of, sampling_properties
from worker.catalog.interface.sizes import FRAME_COUNTS, default_fps, image_limit, size_bounds, step_limit
from worker.catalog.interface.tasks import architecture_of, pipeline_for
from worker.catalog.interface.values import is_valid
from worker.catalog.pipelines.table import pipeline_row
from worker.core.job import PROMPT_PARAMETERS
from worker.core.model import Detection, ModelSpec, Task
from worker.core.prompt import PROMPT_WEIGHTINGS
from worker.core.request import GenerationRequest

REQUEST_DEFAULTS = ("negative_prompt",)  # a model's defaults that fill fields of the request itself
COMMON = tuple(name for name in GenerationRequest.model_fields if name != "params")
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
    if signature is not None and (
        "negative_prompt" not in signature or "negative_prompt" in pipeline_row(pipeline).untaken
    ):
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
    own = next((name for name in FRAME_COUNTS if name in signature), "num_frames")
    if own != "num_frames":
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
        limited = _property(name, schema, spec, detection, task)
        if default is not None and is_valid(default, limited):
            limited["default"] = default
        properties[name] = limited
    fit = fit_of(spec, detection, task)
    properties = {name: item for name, item in properties.items() if name not in LISTS or fit.takes(name)}
    if pipeline_row(pipeline_for(spec, detection, task)).denoises:
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
        family = architecture_of(spec, detection)
        guidance = family.guidance if family else "guidance_scale"
        for name in ("width", "height", "num_inference_steps", guidance, *([] if task in FROM_TEXT else ["strength"])):
            found[name] = ({"type": "number" if name in BOUNDS else "integer"}, None)
        for name, kind in (base_of(family).parameters if family else {}).items():
            found[name] = ({"type": kind}, None)
        for name, value in (family.defaults if family else {}).items():
            if name not in found and isinstance(value, int | float):
                found[name] = ({"type": _json_type(value)}, None)
    row = pipeline_row(pipeline)
    for parameter in (signature or {}).values():
        if parameter.schema is None or parameter.schema == {"type": "null"} or DENIED.fullmatch(parameter.name):
            continue
        if parameter.name in row.untaken or parameter.name in COMMON or _lacks_part(parameter.name, detection):
            continue
        if parameter.name != "strength" or task not in FROM_TEXT:
            found[parameter.name] = (parameter.schema, parameter.default)
    if task not in FROM_TEXT and row.denoises:  # where the class takes no size, the image is brought to it beforehand
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


def _property(name: str, schema: Schema, spec: ModelSpec, detection: Detection | None, task: Task) -> Schema:
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
    found = bounded(name, schema, steps)
    if name == "strength" and redraws_by_strength(pipeline_for(spec, detection, task)):
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


def needed_fields(spec: ModelSpec, detection: Detection | None, task: Task) -> tuple[str, ...]:
    """The common fields without which `task` cannot start."""
    pipeline = pipeline_for(spec, detection, task)
    # Under another name it is one of several texts, and the pipeline says which it needs.
    words = ("prompt",) if task is not Task.UPSCALING and prompt_parameter(pipeline) == "prompt" else ()
    if task in FROM_TEXT:
        return words
    return (*words, *missing_fields(media_slots(pipeline, task), task, ()))
