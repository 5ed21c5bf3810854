"""The check of one value against its JSON Schema, with errors that a person can act on."""

import json
import math
import re
from collections.abc import Collection, Iterator

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema
from worker.catalog.interface.bounds import MAX_ITEMS, MAX_TEXT_CHARS
from worker.catalog.interface.fitting import fits
from worker.core.errors import ParameterOutOfRange

_MAX_DEPTH = 8
_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")
_NUMBER = re.compile(r"[+-]?([0-9]+)(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
_MAX_NUMBER_CHARS = 40
_TRUTH = {"true": True, "false": False}


def check_value(name: str, value: JsonValue, schema: Schema) -> JsonValue:
    """Return `value` as the pipeline gets it. Raises ParameterOutOfRange with the limit, the value and the fix."""
    problem = _unsafe(value)
    if problem is None and fits(value, schema):
        return _whole(value, schema)
    shown = "that" if problem else _shown(value)
    text = f"{name} must be {_expected(schema)}; {problem or f'{shown} was sent'}"
    step = schema.get("multipleOf")
    if problem is None and isinstance(step, int) and isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema["minimum"], schema["maximum"]
        if isinstance(low, int) and isinstance(high, int):
            text += f" (nearest: {nearest_multiple(value, step, low, high)})"
    hint = f"Leave {name} out to use {_shown(schema['default'])}." if "default" in schema else None
    limits: dict[str, object] = {
        key: schema[key] for key in ("minimum", "maximum", "multipleOf", "enum", "default") if key in schema
    }
    raise ParameterOutOfRange(f"{text}.", field=name, hint=hint, details=limits)


def number_in(value: object) -> int | float | None:
    """Return the number that `value` is, or that it is the text of; None for anything else, a truth value too."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) and len(value) <= _MAX_NUMBER_CHARS else ""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    if match[2] is None and match[3] is None:
        return int(text)  # exactly: a seed has more digits than a float
    number = float(text)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def truth_in(value: object) -> bool | None:
    """Return the truth value that `value` is, or that it is the text of; None for anything else."""
    return _TRUTH.get(value.strip().lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


def plain_value(value: JsonValue, schema: Schema) -> JsonValue:
    """Return a number or truth value for its text, where `schema` takes one and no such text; else `value`."""
    if not isinstance(value, str | list) or _unsafe(value) or fits(value, schema):
        return value
    kinds = [kind for kind in _members(schema) if isinstance(kind, dict)]
    if isinstance(value, list):
        inner = next((kind["items"] for kind in kinds if isinstance(kind.get("items"), dict)), None)
        return [plain_value(item, inner) for item in value] if isinstance(inner, dict) else value
    return _plain_text(value, {str(kind.get("type")) for kind in kinds})


def _plain_text(text: str, types: Collection[str]) -> JsonValue:
    number = number_in(text) if {"integer", "number"} & set(types) else None
    plain = truth_in(text) if number is None and "boolean" in types else number
    return text if plain is None else plain


def _members(schema: Schema) -> list[JsonValue]:
    members = schema.get("anyOf")
    return members if isinstance(members, list) else [dict(schema)]


def _unsafe(root: JsonValue) -> str | None:
    """Return the reason why a value is dangerous to handle, whatever its schema; walked without recursion."""
    pending: list[tuple[JsonValue, int]] = [(root, 0)]
    for count, (value, depth) in enumerate(_drain(pending)):
        if depth > _MAX_DEPTH or count > MAX_ITEMS:
            return f"a value nested deeper than {_MAX_DEPTH} or with more than {MAX_ITEMS:,} parts was sent"
        if isinstance(value, dict):
            pending += [(key, depth + 1) for key in value] + [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif problem := _unsafe_scalar(value):
            return problem
    return None


def _unsafe_scalar(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN or infinity was sent"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number beyond 64 bits was sent"
    if isinstance(value, str) and (len(value) > MAX_TEXT_CHARS or _BAD_TEXT.search(value)):
        return f"text with a NUL, a lone surrogate or more than {MAX_TEXT_CHARS:,} characters was sent"
    if not isinstance(value, str | int | float | None):
        return "something that JSON cannot hold was sent"
    return None


def _drain(pending: list[tuple[JsonValue, int]]) -> Iterator[tuple[JsonValue, int]]:
    while pending:
        yield pending.pop()


def _whole(value: JsonValue, schema: Schema) -> JsonValue:
    """Return 20.0 as 20 where `schema` asks for an integer: JSON has one number type, Python two."""
    members = schema.get("anyOf")
    if isinstance(members, list):
        fitting = (member for member in members if isinstance(member, dict) and fits(value, member))
        return _whole(value, next(fitting, {}))
    inner = schema.get("items")
    if isinstance(value, list) and isinstance(inner, dict):
        return [_whole(item, inner) for item in value]
    return int(value) if isinstance(value, float) and schema.get("type") == "integer" else value


def _expected(schema: Schema) -> str:
    """Return the schema in words, to stand after "must be"."""
    members, kind = schema.get("anyOf"), schema.get("type")
    if isinstance(members, list):
        # null stands for a parameter that is left out: no help in an error
        types = [member for member in members if isinstance(member, dict) and member.get("type") != "null"]
        return " or ".join(_expected(member) for member in types)
    if isinstance(values := schema.get("enum"), list):
        return f"one of {', '.join(str(value) for value in values)}"
    if kind in ("integer", "number"):
        return _expected_number(schema)
    if kind == "array" and isinstance(inner := schema.get("items"), dict):
        least, most = schema.get("minItems"), schema.get("maxItems")
        count = f"{most}" if least == most else f"{least or 0} to {most}"
        return f"a list of {count} items, each {_expected(inner)}"
    if kind == "string":
        return f"text of at most {schema.get('maxLength', MAX_TEXT_CHARS)} characters"
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "a JSON value")


def _expected_number(schema: Schema) -> str:
    low, high, step = (schema.get(key) for key in ("minimum", "maximum", "multipleOf"))
    noun = f"a multiple of {step}" if step else "an integer" if schema.get("type") == "integer" else "a number"
    return noun if low is None else f"{noun} from {low} up" if high is None else f"{noun} between {low} and {high}"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def nearest_multiple(value: float, step: int, low: int, high: int) -> int:
    """Return the multiple of `step` from `low` to `high` that is closest to `value`."""
    bounded = min(max(value, low), high)
    return min(max(round(bounded / step) * step, low), high)
