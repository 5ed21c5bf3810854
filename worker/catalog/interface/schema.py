"""A request for a model as JSON Schema (2020-12): its fields, and the rules of which go together for each task."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.annotations import Schema
from worker.catalog.classes.inputs import FIELDS
from worker.catalog.interface.adapters import (
    ADAPTERS,
    adapter_fields,
    all_adapter_fields,
    takes_loras,
    takes_one_image_prompt,
)
from worker.catalog.interface.bounds import meaning
from worker.catalog.interface.clauses import DEFINITIONS, sent
from worker.catalog.interface.controls import controlled_rows, known_modes, most_controls
from worker.catalog.interface.field_rules import examples_of, formats_of, rules, with_controls
from worker.catalog.interface.parameters import (
    meanings,
    needed_fields,
    parameters,
    takes_negative_prompt,
)
from worker.catalog.interface.precisions import precisions
from worker.catalog.interface.request_fields import common_fields, request_fields
from worker.catalog.interface.sizes import image_limit, size_bounds
from worker.core.model import Task
from worker.core.pipeline import Slot
from worker.core.request import MAX_FRAMES, MAX_IMAGES

ENVELOPE: Mapping[str, Schema] = {
    "action": {"const": "generate", "description": "What a request is when it says none."},
    "traceparent": {"description": "A W3C trace context, the parent of the job's trace."},
}
# Objects of which a request holds one each. A reference alone will do.
_SINGLE: Mapping[str, str] = {"refiner": "RefinerSpec", "upscale": "UpscaleSpec"}
# Controls of a request that has no image of its own.
_WITH_IMAGES: Schema = {
    "description": "Each with the image that it follows.",
    "type": ["array", "object", "null"],
    "properties": {"image": {"type": "string"}},
    "required": ["image"],
    "items": {"type": "object", "properties": {"image": {"type": "string"}}, "required": ["image"]},
}
_TEXT: Schema = {"type": "string", "minLength": 1}
_SHOWN = ("width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale")  # in examples


def model_schema(model: Model, *, max_images: int, max_loras: int, takes_precision: bool = True) -> Schema:
    """Return the JSON Schema (2020-12) of a request for this model: its fields, and the rules of each task.

    A request that fits is accepted, as far as its fields show. The schema cannot check the content of a reference or
    an image, the many names of a scheduler, or two numbers together; the fields' descriptions give those limits.
    """
    spec = model.spec
    generated = request_fields().model_json_schema()
    objects = {name: tidy(item) for name, item in generated["$defs"].items()}
    properties = {name: dict(item) for name, item in ENVELOPE.items()}
    properties |= {name: _without_null(tidy(generated["properties"][name])) for name in common_fields()}
    _write_common(properties, model)
    _write_objects(properties, objects, model, max_loras)
    for schemas in (*map(parameters, model.calls), *map(with_controls, model.calls)):
        # The first task's defaults are the ones shown.
        properties |= {name: item for name, item in schemas.items() if name not in properties}
    properties |= {name: {**properties[name], "default": size} for name, size in _enlarged(properties, model).items()}
    properties["num_images"]["maximum"] = image_limit(spec, max_images)
    _write_examples(properties, model)
    untaken = _untaken(model) | (set() if takes_precision else {"precision"})
    properties = _with_media({name: item for name, item in properties.items() if name not in untaken}, model)
    return _document(model, properties, objects)


def _document(model: Model, properties: Mapping[str, dict[str, Any]], objects: Mapping[str, dict[str, Any]]) -> Schema:
    """Return the schema of requests with fields of `properties`, and the rules of which go together."""
    spec = model.spec
    shared, per_task = rules(model, properties)
    needed = [name for name in properties if sent(name) in shared]
    conditions: list[JsonValue] = [*(rule for rule in shared if rule not in [sent(name) for name in needed]), *per_task]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A request for {spec.id}",
        **({"description": spec.description} if spec.description else {}),
        "type": "object",
        "properties": {name: _filled(item) if name in needed else nullable(item) for name, item in properties.items()},
        "required": [*needed],
        "additionalProperties": False,
        **({"allOf": conditions} if conditions else {}),
        "$defs": {**_used(objects, properties), **DEFINITIONS},
        "examples": [_example(call) for call in model.calls] or [{"model": spec.id}],
    }


def _write_common(properties: dict[str, dict[str, Any]], model: Model) -> None:
    """Write this model's own values of the common fields into `properties`."""
    properties["model"]["default"] = model.spec.id
    properties["task"] = {"enum": [*model.tasks], "description": properties["task"]["description"]}
    if model.spec.quality is not None:
        properties["quality"]["default"] = model.spec.quality
    properties["precision"]["enum"] = [*precisions(model)]
    if model.spec.precision is not None:
        properties["precision"]["default"] = model.spec.precision
    if "negative_prompt" in model.spec.defaults:
        properties["negative_prompt"]["default"] = model.spec.defaults["negative_prompt"]


def _enlarged(schemas: Mapping[str, Mapping[str, Any]], model: Model) -> dict[str, int]:
    """Return the default sides of a model with its own upscaler: who sends them gets what an empty request gets."""
    scale, most = model.spec.upscale.scale if model.spec.upscale else 1, size_bounds(model).maximum
    sides = {name: schemas.get(name, {}).get("default") for name in ("width", "height")}
    return {name: side * scale for name, side in sides.items() if isinstance(side, int) and side * scale <= most}


def _write_examples(properties: dict[str, dict[str, Any]], model: Model) -> None:
    """Write the schedulers and schedules that need no other field, whatever the task, into `properties`."""
    for name in ("scheduler", "schedule"):
        lists = [examples_of(call)[name] for call in model.calls if name in parameters(call)]
        shared = [value for value in lists[0] if all(value in other for other in lists)] if lists else []
        if shared:
            properties[name] = {**properties[name], "examples": shared}


def tidy(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return pydantic's schema without titles and null defaults, and with `null` as one more type."""
    tidied = {key: value for key, value in item.items() if key != "title" and (key, value) != ("default", None)}
    for key in ("properties", "$defs"):
        if key in tidied:
            tidied[key] = {name: tidy(part) for name, part in tidied[key].items()}
    members = [tidy(member) for member in tidied.pop("anyOf", []) if isinstance(member, Mapping)]
    real = [member for member in members if member != {"type": "null"}]
    if not members:
        return tidied
    if len(real) == 1 and "$ref" not in real[0]:
        single = {**real[0], **tidied}
        return nullable(single) if len(real) < len(members) else single
    return {"anyOf": members, **tidied}


def _without_null(item: dict[str, Any]) -> dict[str, Any]:
    """Return `item` without null, for a field that has to be sent."""
    result = {**item, "anyOf": [member for member in item.get("anyOf", ()) if member != {"type": "null"}]}
    if isinstance(result.get("type"), list):
        (result["type"],) = (kind for kind in result["type"] if kind != "null")
    return {key: value for key, value in result.items() if value != []}


def _filled(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return `item`, which may not be an empty list."""
    return {**item, "minItems": 1} if "items" in item else dict(item)


def nullable(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `item` or null: null counts as not sent."""
    kind, members = item.get("type"), item.get("anyOf")
    if "enum" in item:
        item = {**item, "enum": [*item["enum"], *([] if None in item["enum"] else [None])]}
    if isinstance(kind, str | list):
        kinds = [kind] if isinstance(kind, str) else kind
        return {**item, "type": [*kinds, *([] if "null" in kinds else ["null"])]}
    if isinstance(members, list):
        real = [member for member in members if member != {"type": "null"}]
        if len(real) == 1 and isinstance(real[0].get("type"), str):
            return nullable({**real[0], **_without("anyOf", item)})
        return {**item, "anyOf": [*real, {"type": "null"}]}
    if "$ref" in item:
        return {"anyOf": [{"$ref": item["$ref"]}, {"type": "null"}], **_without("$ref", item)}
    return {"enum": [item["const"], None], "description": item["description"]} if "const" in item else dict(item)


def _without(key: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}


def _write_objects(
    properties: dict[str, dict[str, Any]],
    objects: dict[str, dict[str, Any]],
    model: Model,
    max_loras: int,
) -> None:
    """Write into `properties` what adapters and further models may be, and into `objects` what this model knows."""
    listed = {name: kind.spec.__name__ for name, kind in ADAPTERS.items() if kind.several}
    for kind in {*_SINGLE.values(), *(listed[name] for name in listed if ADAPTERS[name].bare)}:
        reference = objects[kind]["properties"]["model"]
        objects[kind] |= {"type": ["object", "string"], "minLength": 1, "maxLength": reference["maxLength"]}
    for name, kind in listed.items():
        most = {"loras": max_loras}.get(name, properties[name].get("maxItems"))
        several: dict[str, Any] = {"type": "array", "items": {"$ref": f"#/$defs/{kind}"}, "maxItems": most}
        text = properties[name]["description"]
        properties[name] = {"anyOf": [several, {"$ref": f"#/$defs/{kind}"}], "description": text}
    for name, kind in _SINGLE.items():
        properties[name] = {"$ref": f"#/$defs/{kind}", "description": properties[name]["description"]}
    own = model.spec.upscale
    properties["upscale"] = {
        "anyOf": [{"$ref": "#/$defs/UpscaleSpec"}, {"const": False}],
        "description": properties["upscale"]["description"],
        **({"default": {"model": own.model, "scale": own.scale}} if own else {}),
    }
    rows = [row for call in model.calls for row in controlled_rows(call)]
    if rows:
        properties["controlnets"]["anyOf"][0]["maxItems"] = most_controls(rows)
        fields, modes = objects["ControlNetSpec"]["properties"], known_modes(rows)
        fields["mode"] = {**fields["mode"], "enum": [*modes, None]}
        if not modes:
            del fields["mode"]
    if model.calls and all(map(takes_one_image_prompt, model.calls)):
        properties["ip_adapters"]["anyOf"][0]["maxItems"] = 1
        adapter = objects["IPAdapterSpec"]
        adapter["properties"]["images"]["maxItems"] = 1
        adapter["oneOf"] = adapter.pop("anyOf")
    objects["OutputOptions"]["properties"]["format"]["enum"] = [*formats_of(model.calls), None]


def _untaken(model: Model) -> set[str]:
    """Return the common fields that none of the model's tasks takes."""
    untaken = {*all_adapter_fields()} - {field for call in model.calls for field in adapter_fields(call)}
    if not any(takes_negative_prompt(call) for call in model.calls or (model.call(Task.TEXT_TO_IMAGE),)):
        untaken.add("negative_prompt")
    if Task.INPAINTING not in model.tasks:
        untaken.add("outpaint")
    if model.spec.lightning is None:
        untaken.add("lightning")
    call = model.call(Task.UPSCALING)
    if not (call.row.denoises and takes_loras(call)):
        untaken.add("loras")
    return untaken


def _with_media(properties: Mapping[str, dict[str, Any]], model: Model) -> dict[str, dict[str, Any]]:
    """Return `properties` with the media that the model's tasks take and without all others."""
    media: dict[str, dict[str, Any]] = {}
    for name, slot in _media_names(model):
        most = max(_most(name, slot), media.get(name, {}).get("maxItems", 0))
        text = "The one image, as image." if (name, most) == ("images", 1) else None
        text = text or properties.get(name, {}).get("description") or meaning(name)
        text = text or f"For {name} of the pipeline, sent like image."
        media[name] = _medium(name, most, nested=slot.form == "grid") | {"description": text}
    merged = {name: media.get(name, item) for name, item in properties.items() if name not in FIELDS or name in media}
    for name in ("width", "height") if media else ():
        if "default" in merged.get(name, {}):  # the default of a request from text
            merged[name] = {
                **merged[name],
                "description": f"{merged[name]['description']} An image that is sent keeps its own.",
            }
    return merged | {name: item for name, item in media.items() if name not in merged}


def _media_names(model: Model) -> Iterator[tuple[str, Slot]]:
    """Yield the names under which each task's media can be sent, each with its slot."""
    for call in model.calls:
        for slot in call.slots:
            for name in slot.fields if not call.from_text else ():
                yield name, slot
            if slot.own_name is not None and not (slot.own_name in FIELDS and call.from_text):
                yield slot.own_name, slot


def _most(name: str, slot: Slot) -> int:
    """Return the most images that a field may hold."""
    return MAX_FRAMES if "video" in name else MAX_IMAGES if slot.several else 1


def _medium(name: str, most: int, *, nested: bool) -> dict[str, Any]:
    """Return the schema of an image or video, or of a list of them; if `nested`, the list may hold lists and gaps."""
    if name in ("mask_image", "control_image"):
        return dict(_TEXT)
    item: Schema = {"type": ["string", "array", "null"], "items": {"type": ["string", "null"]}} if nested else _TEXT
    return {"type": ["string", "array"], "minLength": 1, "items": item, "maxItems": most}


def _used(objects: Mapping[str, dict[str, Any]], properties: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return those of `objects` that a property refers to."""
    text = json.dumps(properties)
    used = {name: item for name, item in objects.items() if f'"#/$defs/{name}"' in text}
    return used | ({"with_images": _WITH_IMAGES} if "controlnets" in properties else {})


def _example(call: ModelCall) -> Schema:
    """Return a request for the call's task, with the values that most callers would change."""
    # A prompt that small models know too: the demo model warns of subjects that it was not taught.
    words: Schema = {"prompt": "a red apple", "video": "https://example.com/input.mp4"}
    needed, schemas, task = needed_fields(call), parameters(call), call.task
    own_names = meanings(call)  # a value with two names is given once, by the model's own name
    chosen = {
        name: schemas[name]["default"]
        for name in _SHOWN
        if name not in own_names and "default" in schemas.get(name, {})
    } | _enlarged(schemas, call.model)
    inferred = call.model.infer_task([name for name in needed if name != "prompt"])
    named_task: Schema = {} if inferred is task else {"task": task}
    sources: Schema = {name: words.get(name, f"https://example.com/{name}.png") for name in needed}
    return {"model": call.spec.id} | named_task | sources | chosen | {"seed": 42}
