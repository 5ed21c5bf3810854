"""Write docs/parameters.md: every parameter of a pipeline's call that a request may hold, what it means, who takes it.

    python -m tools.parameters_page

Run it after a new diffusers was pinned or a pipeline's row changed; a test compares the page with the schemas.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model
from worker.catalog.classes.annotations import Schema
from worker.catalog.classes.inputs import FIELDS
from worker.catalog.classes.refusals import refusal
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.bounds import meaning
from worker.catalog.interface.field_rules import with_controls
from worker.catalog.interface.parameters import parameters
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sampling import measured_pipelines
from worker.core.model import ModelSource, ModelSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parameters.md"
_REQUESTS = PAGE.with_name("api.md")

_HEAD = """# Parameters of single pipelines

Written by `python -m tools.parameters_page` from the signatures of diffusers' pipelines; a test compares the two. The
fields that most models take stand in [api.md](api.md#fields-of-a-generation). What is listed here is passed on to the
pipeline by the same name; a model's own schema (`{"action": "schema", "model": …}`) says whether it takes one, within
which bounds and for which task. The bounds here are those of the first that is named. Families first, then
classes of diffusers that have no row in [models.md](models.md).

| parameter | value | meaning | taken by |
|---|---|---|---|
"""
_SHOWN = 3
# A request says these in its own way, or never.
_ELSEWHERE = {*common_fields(), *FIELDS}


def page() -> str:
    """The whole text of docs/parameters.md."""
    told = fields_of_requests()
    rows = (
        f"| `{name}` | {_value(name, schema)} | {meaning(name) or ''} | {_takers(takers)} |"
        for name, (schema, takers) in sorted(listed_parameters().items())
        if name not in told
    )
    return _HEAD + "\n".join(rows) + "\n"


def fields_of_requests() -> frozenset[str]:
    """The fields that have a row in docs/api.md."""
    table = _REQUESTS.read_text(encoding="utf-8").split("## Fields of a generation")[1].split("\n###")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    return frozenset(name for cell in first for name in re.findall(r"`(\w+)`", cell))


@lru_cache(maxsize=1)
def listed_parameters() -> Mapping[str, tuple[Schema, dict[str, None]]]:
    """Every field that some model's schema has beside those of all requests: its schema, and who takes it."""
    found: dict[str, tuple[Schema, dict[str, None]]] = {}
    for title, spec in _models():
        model = Model(spec)
        fields: dict[str, Schema] = {name: {} for name in model.media_fields}
        for call in model.calls:
            fields |= with_controls(call) | parameters(call)
        for name, schema in fields.items():
            if name not in _ELSEWHERE:
                found.setdefault(name, (schema, {}))[1][title] = None
    return found


def _models() -> Iterator[tuple[str, ModelSpec]]:
    """A model of each family, then one of each class that no family is drawn with."""
    source, drawn = ModelSource(scheme="hf", locator="org/model"), set[str]()
    for row in ARCHITECTURES:
        spec = ModelSpec(id=row.id, source=source, architecture=row.id)
        drawn |= {Model(spec).pipeline_for(task) or "" for task in row.pipelines}
        yield row.title, spec
    for name in sorted(measured_pipelines() - drawn):
        if call_parameters(name) is not None and refusal(name) is None:
            yield name.removesuffix("Pipeline"), ModelSpec(id=name, source=source, pipeline=name)


def _value(name: str, schema: Schema, ending: str = "") -> str:
    """What a value may be, in a few words; `ending` makes a plural of them."""
    members = schema.get("anyOf")
    if isinstance(members, list):
        real = [member for member in members if isinstance(member, dict) and member != {"type": "null"}]
        return " or ".join(dict.fromkeys(_value(name, member, ending) for member in real))
    if isinstance(values := schema.get("enum"), list):
        return ", ".join(f"`{value}`" for value in values)
    low, high, kind = schema.get("minimum"), schema.get("maximum"), str(schema.get("type"))
    if kind in ("integer", "number"):
        bounds = f", {low:,} to {high:,}" if isinstance(high, int | float) and high < 10**6 else ""
        return f"{kind}{ending}{bounds}"
    if kind == "array" and isinstance(inner := schema.get("items"), dict):
        return f"list{ending} of {_value(name, inner, 's')}"
    media = "video" if "video" in name else "image"
    return {"string": f"text{ending}", "None": media}.get(kind, kind)


def _takers(names: Mapping[str, None]) -> str:
    shown, more = [*names][:_SHOWN], len(names) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(listed_parameters())} parameters")
