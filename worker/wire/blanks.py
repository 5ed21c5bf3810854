"""Values that say nothing: many clients send each field that they know, and an empty value for one that nobody set."""

from collections.abc import Mapping
from functools import cache

from pydantic import JsonValue

from worker.catalog.interface.bounds import BOUNDS
from worker.catalog.interface.request_fields import common_fields, request_fields
from worker.catalog.interface.values import number_in
from worker.wire.validation import OBJECTS

# Objects that say nothing without a field. Margins of no side are refused: who names outpaint wants it.
_WITHOUT_FIELDS = OBJECTS.keys() - {"outpaint"}
_RANDOM = -1  # the seed of those who want any
# One entry for each ControlNet, one for each frame: without one of them the others would mean something else.
_IN_STEP = ("control_images", "video")
# Parameters of every model whose bounds are its family's, and begin above 0.
_ABOVE_ZERO = ("width", "height", "num_inference_steps", "shift")


def without_blanks(name: str, value: JsonValue) -> JsonValue:
    """Return the value of the field `name` without what says nothing in it; None if nothing is left.

    That is null, "" and []; an object of nothing else; 0 in a field that takes no 0; and the seed -1. An empty prompt
    says something.
    """
    if name in common_fields():
        value = _without(value, name, _above_zero(name))
    return None if is_blank(name, value) else value


def is_blank(name: str, value: JsonValue) -> bool:
    """True if nobody can mean `value` by the field `name`, whatever its type."""
    if value is None or value == [] or (value == {} and name in _WITHOUT_FIELDS):
        return True
    if isinstance(value, str) and not value.strip():
        return not _may_be_empty(name)
    number = number_in(value)
    return number is not None and ((number == _RANDOM and name == "seed") or (number == 0 and name in _above_zero()))


def _may_be_empty(name: str) -> bool:
    """True for prompts: an empty one is drawn from, and an empty negative one takes the place of the model's own."""
    return "prompt" in name and name != "prompt_weighting"


def _without(value: JsonValue, name: str, above_zero: frozenset[str]) -> JsonValue:
    if isinstance(value, list):
        return _entries(value, name)
    return _parts(value, above_zero) if isinstance(value, dict) else value


def _entries(value: list[JsonValue], name: str) -> list[JsonValue]:
    entries = [_without(item, name, frozenset()) for item in value]
    said = [entry for entry in entries if not is_blank("", entry)]
    return value if said and len(said) < len(value) and name in _IN_STEP else said


def _parts(value: dict[str, JsonValue], above_zero: frozenset[str]) -> dict[str, JsonValue]:
    parts = {key: _without(item, "", frozenset()) for key, item in value.items()}
    blank = {key for key, part in parts.items() if is_blank("", part) or part == {}}
    blank |= {key for key in above_zero & parts.keys() if number_in(parts[key]) == 0}
    return {key: part for key, part in parts.items() if key not in blank}


@cache
def _above_zero(field: str | None = None) -> frozenset[str]:
    """Return the names of the numbers that are never 0: of the object in `field`, else of a request."""
    if field is None:
        bounded = {name for name, (low, _, _) in BOUNDS.items() if low > 0}
        return frozenset({*_ABOVE_ZERO, *bounded, *_positive(request_fields().model_json_schema())})
    return frozenset(_positive(OBJECTS[field].model_json_schema())) if field in OBJECTS else frozenset()


def _positive(schema: Mapping[str, JsonValue]) -> list[str]:
    properties = schema["properties"]
    return (
        [name for name, part in properties.items() if _begins_above_zero(part)] if isinstance(properties, dict) else []
    )


def _begins_above_zero(schema: JsonValue) -> bool:
    members = schema.get("anyOf", [schema]) if isinstance(schema, dict) else []
    numbers = [part for part in members if isinstance(part, dict)] if isinstance(members, list) else []
    return any(
        (isinstance(low := part.get("minimum"), int | float) and low > 0) or part.get("exclusiveMinimum") == 0
        for part in numbers
    )
