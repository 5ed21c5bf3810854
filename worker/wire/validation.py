"""Refusals of JSON that no field takes, each naming the field, the limit and the fix."""

import difflib
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from pydantic import JsonValue, ValidationError

from worker.catalog.classes.inputs import FIELDS
from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.values import number_in, truth_in
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter, WorkerError
from worker.core.finishing import RefinerSpec, UpscaleSpec
from worker.core.model import Parsed
from worker.core.request import Margins, OutputOptions, S3Config
from worker.core.version import HaltRule
from worker.wire.texts import shown, utf8

# The fields that hold objects with fields of their own.
OBJECTS: Mapping[str, type[Parsed]] = {
    "output": OutputOptions,
    "refiner": RefinerSpec,
    "upscale": UpscaleSpec,
    "outpaint": Margins,
    "s3Config": S3Config,
    "halt": HaltRule,
}
# pydantic's complaints of a text in place of a number or a truth value, and what reads it out of the text.
_PLAIN: Mapping[str, Callable[[object], JsonValue]] = {
    "int_type": number_in,
    "float_type": number_in,
    "bool_type": truth_in,
}
_MEDIA_HINT = 'Send base64, a data: URI or an https URL, bare or as {"url": "…"}.'
_HINTS: Mapping[str, str] = {"seed": "Leave seed out, or send -1, for a random one."} | dict.fromkeys(
    FIELDS, _MEDIA_HINT
)
_MAX_DEPTH = 16
_MAX_KEYS = 200
_MAX_PARTS = 10_000
_MAX_WHOLE = 2**64
# pydantic's error types in words that stand after "must be".
_MUST: Mapping[str, str] = {
    "string_type": "a text",
    "string_unicode": "valid UTF-8 text, without half of a surrogate pair",
    "string_too_long": "at most {max_length} characters long",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "too_long": "a list of at most {max_length}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "at most {le}",
    "enum": "one of {expected}",
    "literal_error": "one of {expected}",
}


def field_error(error: ValidationError) -> WorkerError:
    """Turn pydantic's first complaint into our words; an unknown key comes before the required one it was meant as."""
    errors = error.errors(include_url=False)
    first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    loc = first["loc"][1:] if first["loc"][:1] == ("params",) else first["loc"]
    field = utf8(str(loc[0]))[:80] if loc else "input"
    name = utf8("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip("."))[:80]
    if first["type"] == "extra_forbidden":
        return _unknown_key(name, str(loc[-1]), field)
    if first["type"] == "missing":
        return ParameterOutOfRange(f"{name} is missing; add it.", field=field)
    limits = {key: _plainly(value) for key, value in first.get("ctx", {}).items()}
    must = _MUST.get(first["type"], "valid ({reason})").format_map(limits | {"reason": first["msg"]})
    sent = first.get("input")
    choices = str(limits.get("expected", "")).replace(" or ", ", ").split(", ")
    matches = difflib.get_close_matches(sent[:40].lower(), choices, n=1) if isinstance(sent, str) else []
    size = f"{len(sent)} characters were" if first["type"] == "string_too_long" else f"{shown(sent)} was"
    size = f"{limits.get('actual_length')} were" if first["type"] == "too_long" else size
    hint = f"Did you mean {matches[0]}?" if matches else _HINTS.get(field)
    return ParameterOutOfRange(f"{name} must be {must}; {size} sent.", field=field, hint=hint)


def with_plain_values(fields: Mapping[str, JsonValue], refusal: ValidationError) -> dict[str, JsonValue]:
    """Return `fields` with a number or a truth value for each text that was refused for want of one and holds one."""
    mended = {name: deepcopy(value) if isinstance(value, dict | list) else value for name, value in fields.items()}
    for error in refusal.errors(include_url=False):
        sent = error["input"]
        plain = _PLAIN[error["type"]](sent) if error["type"] in _PLAIN and isinstance(sent, str) else None
        if plain is not None:
            *path, last = error["loc"]
            place: Any = mended
            for part in path:
                place = place[part]
            place[last] = plain
    return mended


def _unknown_key(name: str, key: str, field: str) -> UnknownParameter:
    """Return the error for a key that the object in `field` does not have."""
    names = [info.alias or name for name, info in (OBJECTS.get(field) or ADAPTERS[field].spec).model_fields.items()]
    matches = difflib.get_close_matches(key[:80], names, n=1)
    fix = f"did you mean {matches[0]}?" if matches else f"it takes {', '.join(names)}."
    return UnknownParameter(f"{name} is not a known field; {fix}", field=field)


def _plainly(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.replace("'", "") if isinstance(value, str) else value


def check_json(value: JsonValue) -> None:
    """Refuse NaN and infinity, and nesting, keys, numbers and lists beyond any use."""
    todo: list[tuple[str, JsonValue, int]] = [("input", value, 0)]
    parts = 0
    while todo:
        name, item, depth = todo.pop()
        parts += 1
        if depth > _MAX_DEPTH:
            raise InvalidRequest(f"{name} is nested more than {_MAX_DEPTH} deep; flatten it.", field=name)
        if parts + len(todo) > _MAX_PARTS:
            raise InvalidRequest(f"{name} has too many parts; at most {_MAX_PARTS:,} are taken.", field=name)
        if isinstance(item, dict):
            _check_keys(name, item)
            todo += [(utf8(key)[:80] if depth == 0 else name, child, depth + 1) for key, child in item.items()]
        elif isinstance(item, list):
            todo += [(name, child, depth + 1) for child in item[:_MAX_PARTS]]
        else:
            _check_scalar(name, item)


def _check_keys(name: str, item: Mapping[str, object]) -> None:
    if len(item) > _MAX_KEYS or not all(isinstance(key, str) for key in item):
        raise InvalidRequest(f"{name} may hold at most {_MAX_KEYS} named fields.", field=name)
    if not all(key.strip() for key in item):
        raise InvalidRequest(f"{name} holds a field without a name; name it or leave it out.", field=name)


def _check_scalar(name: str, item: object) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise ParameterOutOfRange(f"{name} must be a finite number; NaN or infinity was sent.", field=name)
    if isinstance(item, int) and abs(item) >= _MAX_WHOLE:
        raise ParameterOutOfRange(f"{name} must be a number of at most 64 bits; a larger one was sent.", field=name)
    if not isinstance(item, str | int | float | None):
        raise InvalidRequest(f"{name} holds something that JSON does not have; send plain JSON.", field=name)
