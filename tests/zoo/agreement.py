"""Requests drawn from a model's schema and from beside it: what the schema says of each, and what the worker does."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from tests.asking import on_one_loop
from tests.zoo.fields import value_for
from tests.zoo.recipe import Image, Mask, Recipe, Video, on_the_wire
from tests.zoo.served import ServedZoo
from worker.catalog.interface.values import number_in
from worker.core.errors import WorkerError
from worker.wire.blanks import is_blank, without_blanks
from worker.wire.request import decode_envelope, decode_generation

Payload = dict[str, Any]
_IMAGE, _MASK, _CLIP = on_the_wire(Image()), on_the_wire(Mask()), on_the_wire(Video())
_MEDIA = ("image", "images", "mask_image", "control_image", "control_images", "video", "last_image", "image_reference")
# What other families take: a schema that lists none of them refuses them all.
_FOREIGN = (*_MEDIA, "strength", "padding_mask_crop", "num_frames", "guidance_rescale", "true_cfg_scale", "wdith")
_FOREIGN += (
    "outpaint",
    "refiner",
    "lightning",
    "controlnets",
    "_auto_resize",
    "negative_prompt",
    "timesteps",
    "sigmas",
)
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "action": ("generate", "draw"),
    "task": ("text-to-image", "image-to-image", "inpainting", "image-editing", "text-to-video", "controlnet", "?"),
    "model": (None,),
    "prompt": ("", "a cat", 5),
    "negative_prompt": ("blurred", "", 3),
    "outpaint": ({"left": 64}, {}, {"left": 0}, {"up": 8}, {"top": -8}, {"right": 8.0}, []),
    "loras": (["org/a"], "org/a", {"model": "org/a", "weight": 2}, [""], [{"model": ""}], [{"weight": 1}], ["a/b"] * 9),
    "controlnets": ([], ["org/c"]),
    "ip_adapters": (
        ["org/a"],
        [{"model": "org/a"}],
        {"model": "org/a", "image": _IMAGE},
        [{"model": "org/a", "images": [_IMAGE]}],
        [{"model": "org/a", "images": []}],
        [{"model": "org/a", "image": _IMAGE}] * 2,
        [{"model": "org/a", "image": _IMAGE, "scale": 11}],
    ),
    "embeddings": (["org/e"], [{"model": "org/e", "token": " x"}], "", []),
    "hypernetworks": (["org/h"], {"model": "org/h", "weight": 20}, [""]),
    "vae": ("org/v", "", ["org/v"]),
    "refiner": ("", {"model": "org/r", "start": 1}),
    "upscale": ("", {"model": "org/u", "tile": 3}),
    "lightning": (True,),
    "seed": (7, 7.0, -1, 7.5, "7", True, 2**63),
    "num_images": (2, 2.0, 0, 99),
    "output": (
        {"format": "webp"},
        {"format": "mp4"},
        {"format": "png", "quality": 80.0},
        {"quality": None},
        {"format": None},
        {"quality": 0},
        {"size": 1},
    ),
    "s3Config": (
        {"endpointUrl": "https://s3.example.com", "bucketName": "mine", "accessId": "a", "accessSecret": "b"},
        {"bucketName": "?"},
    ),
    "timeout_s": (5, 0, 1e6),
    "progress": (False, 0),
    "traceparent": ("x", 5),
    "scheduler": ("DDIMScheduler", "euler", "FlowMatchEulerDiscreteScheduler", "", 5, "nonsense"),
    "schedule": ("karras", "automatic", "", "nonsense"),
    "shift": (3.0, 0, 101),
    "timesteps": ([900, 500, 100], [900.0, 100], [], [1001], "900"),
    "sigmas": ([1.0, 0.5], [], [-1.0]),
    "strength": (0, 0.5, 1, 1.5, 0.01),
    "width": (64, 128, 63, 10**6, "64", 64.0),
    "height": (64, 128, 63, 10**6),
    "num_inference_steps": (2, 2.0, 0, 10**6, 2.5),
    "padding_mask_crop": (8, -1),
}


@dataclass
class Comparison:
    """How often the two agreed, and where they did not: the request, and what each said."""

    counts: Counter[str] = field(default_factory=Counter)
    apart: list[str] = field(default_factory=list)


def compare(zoo: ServedZoo, recipe: Recipe, folder: Path, count: int, more: Mapping[str, Sequence[Any]]) -> Comparison:
    """Make `count` requests for the repository in `folder`, and ask schema and worker about each.

    `more` are values for fields whose worth depends on files.
    """
    schema = schema_of(zoo, folder)
    validator, found = Draft202012Validator(schema), Comparison()
    for payload in requests_for(schema, recipe, folder, count, more):
        errors = [*validator.iter_errors(payload)]
        refusal = refusal_of(zoo, payload)
        if errors and refusal is None and validator.is_valid(_said(payload)):
            errors = []
        verdict = _verdict(payload, schema, errors, refusal)
        found.counts[verdict] += 1
        if verdict == "apart":
            said = [f"{error.message[-80:]} {sorted(fields_of(error))}" for error in errors] or "valid"
            did = "accepted" if refusal is None else f"{refusal.code} {refusal.field}: {refusal.message}"
            found.apart.append(f"{_short(payload)} | schema: {said} | worker: {did}")
    return found


def _said(payload: Payload) -> Payload:
    """Return a request without what says nothing in it, and with numbers for their texts: a schema names neither."""
    said = {name: without_blanks(name, value) for name, value in payload.items()}
    numbers = {name: number_in(value) for name, value in said.items() if isinstance(value, str)}
    said |= {name: number for name, number in numbers.items() if number is not None}
    return {name: value for name, value in said.items() if value is not None}


def refused_examples(zoo: ServedZoo, folder: Path) -> list[str]:
    """The examples of the schema of a repository that the worker refuses, as requests and as values of a field."""
    schema = schema_of(zoo, folder)
    validator, found = Draft202012Validator(schema), []
    starts = [{**_with_images(example), "model": f"file:{folder}"} for example in schema["examples"]]
    values = [{name: value} for name, item in schema["properties"].items() for value in item.get("examples", ())]
    said = [
        next((start | value for start in starts if validator.is_valid(start | value)), starts[0] | value)
        for value in values
    ]
    for payload in (*starts, *said):
        refusal = refusal_of(zoo, payload)
        if refusal is not None or not validator.is_valid(payload):
            found.append(f"{_short(payload)}: {refusal or 'does not fit the schema'}")
    return found


def _verdict(
    payload: Payload, schema: Mapping[str, Any], errors: Sequence[ValidationError], refusal: WorkerError | None
) -> str:
    named = {name for error in errors for name in fields_of(error)}
    if refusal is None:
        silent = all(_says_nothing(name, payload, schema) for name in named)
        return "taken" if not errors else "beyond" if silent else "apart"
    unsaid = bool(named) and all(is_blank(name, payload.get(name)) for name in named)
    named |= {"images"} if "image" in named else set()  # as which a list in image is read
    if unsaid and refusal.field not in named:
        return "beyond"  # the worker reads the request without the field, and refuses what is left of it
    return "refused" if refusal.field in named else "beyond" if _is_beyond_a_schema(refusal, payload) else "apart"


def requests_for(
    schema: Mapping[str, Any], recipe: Recipe, folder: Path, count: int, more: Mapping[str, Sequence[Any]]
) -> Iterator[Payload]:
    """Requests near the schema's examples and the recipe's: up to three fields are changed, added or left out."""
    dice = random.Random(recipe.pipeline)
    properties = schema["properties"]
    starts = [
        dict(decode_envelope(recipe.fields()).fields),
        *(_with_images(example) for example in schema["examples"]),
    ]
    for _ in range(count):
        payload = dict(dice.choice(starts))
        for _ in range(dice.randint(0, 3)):
            what = dice.random()
            if what < 0.15 and payload:
                del payload[dice.choice([*payload])]
            elif what < 0.3:
                name = dice.choice(_FOREIGN)
                payload[name] = dice.choice(_values_of(name, properties.get(name, {}), more))
            else:
                name = dice.choice([*properties])
                payload[name] = dice.choice(_values_of(name, properties[name], more))
        yield {**payload, "model": f"file:{folder}"}


def _values_of(name: str, schema: Mapping[str, Any], more: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Values for a field: good ones, the edges, and some that it cannot have."""
    if name in more or name in _VALUES:
        return (*_VALUES.get(name, ()), *more.get(name, ()), None)
    if "sent like" in schema.get("description", "") or name in _MEDIA:
        image = _MASK if "mask" in name else _IMAGE
        return image, image, [image], [image, image], [], "", 5, None
    edges = [schema[key] for key in ("minimum", "maximum") if key in schema]
    return value_for(name, schema), value_for(name, schema), *edges, *(edge + 10**7 for edge in edges), "?", 5, [], None


def _with_images(example: Payload) -> Payload:
    """An example with what its addresses stand for."""
    made = {"mask_image": _MASK, "video": _CLIP}
    return {
        name: made.get(name, _IMAGE) if str(value).startswith("https://example.com/") else value
        for name, value in example.items()
    }


def schema_of(zoo: ServedZoo, folder: Path) -> dict[str, Any]:
    """The schema that the worker publishes for a repository."""
    return on_one_loop(zoo.worker.operations.introspection.schema(f"file:{folder}")).document


def refusal_of(zoo: ServedZoo, payload: Payload) -> WorkerError | None:
    """What the worker says to a request before it loads anything; None where it goes on to load."""
    try:
        request = decode_generation(decode_envelope(payload).fields)
        on_one_loop(zoo.worker.operations.generation.accept(request, "agreement"))
    except WorkerError as error:
        return error
    return None


def fields_of(error: ValidationError) -> set[str]:
    """The fields of a request that an error of its schema speaks of."""
    if error.absolute_path:
        return {str(error.absolute_path[0])}
    if error.validator == "required":
        return {name for name in error.validator_value if name not in error.instance}
    if error.validator == "additionalProperties":
        return set(error.instance) - set(error.schema["properties"])
    return {name for inner in error.context or () for name in fields_of(inner)}


# What no schema can say, by the field that the worker names, a part of its sentence, and a field without which there is
# no excuse. Nothing else may be refused that fits the schema.
_BEYOND: tuple[tuple[str, str, str, str], ...] = (
    ("the product of two numbers", r"(\w+_)?strength", "leaves no step to run", ""),
    ("the product of two numbers", "width", "pixels", ""),
    ("the product of three numbers", "refiner", "leaves one of the two models none", ""),
    ("the product of two numbers", "upscale|image", "become more than", ""),
    ("the order of two numbers", r"controlnets|\w+_start", "must be less than its end", ""),
    ("the value of another field", "intermediate_timesteps", "is for two steps", ""),
    ("the value of another field", "t0|t1", "must be less than num_inference_steps", ""),
    ("the value of another field", "causal_block_size", "the latent frames of num_frames", "causal_block_size"),
    ("the value of another field", "output_uncertainty|stg_scale", "beside it", ""),
    ("the length of a list", "guidance_schedule", "as many numbers as", ""),
    ("the order of numbers in a list", "timesteps|sigmas", "must fall", "scheduler"),
    ("the names that schedulers go by", "scheduler|schedule", "", ""),
    ("what a scheduler takes", "shift|timesteps|sigmas", "", "scheduler"),
    ("what a ControlNet is", "controlnets", "union ControlNet|all steps|takes one", ""),
    ("what a ControlNet's class takes", r"\w+", "is not a parameter of", "controlnets"),
)
# What a reference leads to shows when it is looked at.
_REFERENCES = frozenset({"source_unavailable", "model_not_found", "incompatible_adapter", "access_denied"})


def _is_beyond_a_schema(refusal: WorkerError, payload: Payload) -> bool:
    return refusal.code in _REFERENCES or any(
        re.fullmatch(names, refusal.field or "")
        and re.search(sentence, refusal.message)
        and (not needed or payload.get(needed))
        for _, names, sentence, needed in _BEYOND
    )


def _says_nothing(name: str, payload: Payload, schema: Mapping[str, Any]) -> bool:
    """Whether a field is not of this model, and says nothing: null, nothing in it, or no to what the model lacks."""
    return name not in schema["properties"] and payload[name] in (None, [], False, "")


def _short(payload: Payload) -> str:
    shown = {name: f"<{len(str(value))}>" if len(str(value)) > 90 else value for name, value in payload.items()}
    return str({name: value for name, value in shown.items() if name != "model"})
