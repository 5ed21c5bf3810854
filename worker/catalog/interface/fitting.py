"""Whether a value fits a JSON Schema: the keywords of parameters at once, whatever else by the package jsonschema.

That package is imported only where it is needed: it takes longer than all models.yaml, and a check fifty times as long.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema


def fits(value: JsonValue, schema: Schema) -> bool:
    """True if `value` fits `schema` as JSON Schema 2020-12 has it."""
    if _is_known(schema):
        return _fits(value, schema)
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator(schema).is_valid(value))


def _fits(value: Any, schema: Schema) -> bool:
    return all(_KEYWORDS[key](value, bound) for key, bound in schema.items() if key not in _NOTES)


def _is_known(schema: Any) -> bool:
    """True if every keyword of a schema, and of those within it, is one of the table."""
    if not isinstance(schema, dict):
        return False
    inner = [*schema.get("anyOf", ()), *((schema["items"],) if "items" in schema else ())]
    plain = all(isinstance(member, str | int | float | None) for member in schema.get("enum", ()))
    named = isinstance(schema.get("type", ""), str)
    return schema.keys() <= _TABLE and plain and named and all(map(_is_known, inner))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "integer": _is_whole,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def _is_one_of(value: Any, members: list[Any]) -> bool:
    """True for a value among `members`, of which true is not 1."""
    return any(value == member and isinstance(value, bool) is isinstance(member, bool) for member in members)


def _is_multiple(value: Any, step: int | float) -> bool:
    if not _is_number(value):
        return True
    quotient = value / step
    return bool(int(quotient) == quotient) if isinstance(step, float) else not value % step


# A bound of numbers says nothing of a text, and one of texts nothing of a list.
_KEYWORDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, name: _TYPES[name](value),
    "enum": _is_one_of,
    "minimum": lambda value, bound: not _is_number(value) or value >= bound,
    "maximum": lambda value, bound: not _is_number(value) or value <= bound,
    "multipleOf": _is_multiple,
    "minLength": lambda value, bound: not isinstance(value, str) or len(value) >= bound,
    "maxLength": lambda value, bound: not isinstance(value, str) or len(value) <= bound,
    "minItems": lambda value, bound: not isinstance(value, list) or len(value) >= bound,
    "maxItems": lambda value, bound: not isinstance(value, list) or len(value) <= bound,
    "items": lambda value, schema: not isinstance(value, list) or all(_fits(item, schema) for item in value),
    "anyOf": lambda value, schemas: any(_fits(value, schema) for schema in schemas),
}
_NOTES = frozenset({"default", "description", "examples", "title", "format"})  # these check nothing
_TABLE = _KEYWORDS.keys() | _NOTES
