"""The fields of a request as callers send them: GenerationRequest's own, with one for each kind of adapter."""

from functools import cache
from typing import Any

from pydantic import Field, create_model

from worker.catalog.interface.adapters import ADAPTERS, AdapterKind
from worker.core.model import AdapterSpec, Parsed
from worker.core.request import GenerationRequest


def request_fields() -> type[Parsed]:
    """Return the pydantic model of all fields that JSON may have, in order."""
    return _request_fields(tuple(ADAPTERS))


def common_fields() -> tuple[str, ...]:
    """Return the names of the fields that do not come from a model's own parameters."""
    return _common_fields(tuple(ADAPTERS))


def gather(sent: Parsed) -> GenerationRequest:
    """Make a request of `sent`, its `request_fields`: the adapters of all kinds in one tuple, kind by kind."""
    adapters: list[AdapterSpec] = []
    for name, kind in ADAPTERS.items():
        value = getattr(sent, name)
        adapters += value if kind.several else [kind.spec(model=value)] if value is not None else []
    values = {name: getattr(sent, name) for name in GenerationRequest.model_fields.keys() & sent.model_fields_set}
    return GenerationRequest(**values, adapters=tuple(adapters))


def spread(request: GenerationRequest) -> Parsed:
    """Make the `request_fields` of `request`, each adapter in the field of its kind."""
    values = {name: getattr(request, name) for name in GenerationRequest.model_fields if name != "adapters"}
    for name, kind in ADAPTERS.items():
        specs = tuple(spec for spec in request.adapters if spec.field == name)
        if specs:
            values[name] = specs if kind.several else specs[0].model
    return request_fields().model_construct(**values)


@cache
def _request_fields(kinds: tuple[str, ...]) -> type[Parsed]:
    fields: dict[str, Any] = {}
    for name, info in GenerationRequest.model_fields.items():
        if name == "adapters":
            fields |= {kind: _annotated(ADAPTERS[kind]) for kind in kinds}
        else:
            fields[name] = (info.annotation, info)
    return create_model("Request", __base__=Parsed, **fields)


@cache
def _common_fields(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in _request_fields(kinds).model_fields if name != "params")


def _annotated(kind: AdapterKind) -> tuple[Any, Any]:
    """Return annotation and field of a kind: a list of its specs, or one reference."""
    if kind.several:
        specs: Any = tuple[kind.spec, ...]  # type: ignore[name-defined]
        return specs, Field(default=(), strict=False, max_length=kind.most, description=kind.description)
    reference: Any = str | None
    return reference, Field(default=None, min_length=1, max_length=512, description=kind.description)
