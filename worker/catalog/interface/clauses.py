"""Rules of the fields that go together, as JSON Schema: derived by trying every set of fields.

A request leaves a field out by not naming it, by null, or by an empty list. `left_out` and `sent` among a schema's
`$defs` say so.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema

LEFT_OUT: Schema = {"$ref": "#/$defs/left_out"}
SENT: Schema = {"$ref": "#/$defs/sent"}
DEFINITIONS: Mapping[str, Schema] = {
    "left_out": {"description": "Nothing was sent: null and an empty list count as that.", "enum": [None, []]},
    "sent": {"description": "Something was sent.", "not": {"enum": [None, []]}},
}


# All names by which a field can be sent: a name that stands in for a field counts as that field in a clause.
Spelling = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Clause:
    """A condition: one of `sent` is sent, or one of `unsent` is left out."""

    sent: tuple[str, ...]
    unsent: tuple[str, ...]


def clauses_of(fields: Sequence[str], holds: Callable[[frozenset[str]], bool]) -> tuple[Clause, ...]:
    """Return the fewest and shortest clauses that are true together for just the sets of `fields` that `holds` accepts.

    Where it accepts none, the result is the one clause of no field, which never holds. Every set is tried, so `fields`
    should be few: a model takes ten images and videos at most.
    """
    sets = [frozenset(chosen) for size in range(len(fields) + 1) for chosen in combinations(fields, size)]
    good = [chosen for chosen in sets if holds(chosen)]
    bad = [chosen for chosen in sets if chosen not in set(good)]
    clauses: list[Clause] = []
    for clause in _candidates(fields):
        if not bad:
            break
        remaining = [chosen for chosen in bad if _is_true(clause, chosen)]
        if len(remaining) < len(bad) and all(_is_true(clause, chosen) for chosen in good):
            clauses.append(clause)
            bad = remaining
    return tuple(clauses)


def _candidates(fields: Sequence[str]) -> Iterator[Clause]:
    """Yield all clauses about `fields`, short ones first."""
    for size in range(len(fields) + 1):
        for named in combinations(fields, size):
            for count in range(size, -1, -1):
                for sent in combinations(named, count):
                    yield Clause(sent, tuple(name for name in named if name not in sent))


def _is_true(clause: Clause, chosen: frozenset[str]) -> bool:
    return not chosen.isdisjoint(clause.sent) or not chosen.issuperset(clause.unsent)


def rule(clause: Clause, at_fault: str | None, spelt: Spelling) -> Schema:
    """Return the schema that refuses requests that break `clause`.

    It requires the missing field, or has `at_fault` left out.
    """
    others = [name for name in clause.unsent if name != at_fault]
    wanted = left_out(*spelt(at_fault)) if at_fault else either(*(sent(*spelt(name)) for name in clause.sent))
    return {"if": both(*(sent(*spelt(name)) for name in others)), "then": wanted} if others else wanted


def condition(clauses: Sequence[Clause]) -> Schema:
    """Return the schema of the requests for which all `clauses` are true."""
    return both(
        *(either(*(sent(name) for name in one.sent), *(left_out(name) for name in one.unsent)) for one in clauses)
    )


def sent(*names: str) -> Schema:
    """Return the schema of requests with something in one of the fields `names`."""
    each: list[Schema] = [{"properties": {name: SENT}, "required": [name]} for name in names]
    return either(*each)


def left_out(*names: str) -> Schema:
    """Return the schema of requests with nothing in the fields `names`."""
    return {"properties": dict.fromkeys(names, LEFT_OUT)}


def when(condition: Schema, *unsent: str) -> Schema:
    """Return the schema of requests that leave the fields `unsent` out where `condition` is true."""
    return {"if": condition, "then": left_out(*unsent)}


def either(*schemas: Schema) -> Schema:
    """Return the schema that accepts a request if one of `schemas` does."""
    members: list[JsonValue] = []
    for schema in schemas:
        inner = schema.get("anyOf")
        members += inner if isinstance(inner, list) and len(schema) == 1 else [schema]
    return schemas[0] if len(schemas) == 1 else {"anyOf": members}


def both(*schemas: Schema) -> Schema:
    """Return the schema of all of `schemas`, in one object as far as they concern different things."""
    properties: dict[str, JsonValue] = {}
    required: list[JsonValue] = []
    others: dict[str, JsonValue] = {}
    rest: list[JsonValue] = []
    for schema in _parts(schemas):
        fields, names = schema.get("properties"), schema.get("required")
        if schema.keys() - {"properties", "required"} and others.keys().isdisjoint(schema):
            others |= schema
        elif schema.keys() - {"properties", "required"}:
            rest.append(schema)
        elif isinstance(fields, dict) and all(properties.get(name, item) == item for name, item in fields.items()):
            properties |= fields
            required += [name for name in names if name not in required] if isinstance(names, list) else []
        else:
            rest.append(schema)
    merged: Schema = {"properties": properties, "required": required, **others, "allOf": rest}
    return {key: value for key, value in merged.items() if value}


def _parts(schemas: Iterable[Schema]) -> Iterator[Schema]:
    """Yield `schemas` in parts: each holds conditions of fields, or other conditions, but not both."""
    for schema in schemas:
        plain = {key: value for key, value in schema.items() if key in ("properties", "required")}
        also = {key: value for key, value in schema.items() if key not in ("properties", "required", "allOf")}
        inner = schema.get("allOf")
        yield from (part for part in (plain, also) if part)
        yield from _parts(part for part in inner if isinstance(part, dict)) if isinstance(inner, list) else ()
