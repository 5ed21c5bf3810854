"""A request for a recipe as JSON Schema (2020-12): its inputs, and the fields of every request."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema
from worker.catalog.interface.request_fields import request_fields
from worker.catalog.interface.schema import ENVELOPE, nullable, tidy
from worker.catalog.recipes.recipe import InputType, Recipe, RecipeInput

# What every request may say, whatever makes its images.
OF_EVERY_REQUEST = (
    *("model", "task", "seed", "output", "s3Config", "timeout_s"),
    *("quality", "fallback", "progress", "previews"),
)
_EXAMPLES: Mapping[InputType, JsonValue] = {
    "text": "a red apple",
    "image": "https://example.com/input.png",
    "video": "https://example.com/input.mp4",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "regions": [[0.25, 0.25, 0.75, 0.75]],
}


def recipe_schema(recipe: Recipe) -> Schema:
    """Return the JSON Schema (2020-12) of a request for `recipe`."""
    generated = request_fields().model_json_schema()
    common = {name: tidy(generated["properties"][name]) for name in OF_EVERY_REQUEST}
    common["model"] |= {"default": recipe.id}
    common["task"] = {"enum": [recipe.task], "description": common["task"]["description"]}
    inputs = {name: each.value_schema for name, each in recipe.inputs.items()}
    required = [name for name, each in recipe.inputs.items() if each.is_required]
    properties = {**{name: dict(item) for name, item in ENVELOPE.items()}, **common, **inputs}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A request for {recipe.id}",
        **({"description": recipe.description} if recipe.description else {}),
        "type": "object",
        "properties": {name: item if name in required else nullable(item) for name, item in properties.items()},
        "required": [*required],
        "additionalProperties": False,
        "$defs": {name: tidy(generated["$defs"][name]) for name in ("OutputOptions", "S3Config")},
        "examples": [{"model": recipe.id, **{name: sample(recipe.inputs[name]) for name in required}}],
    }


def sample(each: RecipeInput) -> JsonValue:
    """Return a value that a request may send for an input."""
    if each.default is not None:
        return each.default
    if each.choices:
        return each.choices[0]
    bound = each.minimum if each.minimum is not None else each.maximum
    if bound is not None:
        return int(bound) if each.type == "integer" else bound
    return _EXAMPLES[each.type]
