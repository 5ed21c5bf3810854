"""Values of AUTOMATIC1111's payload: numbers and objects, as its clients write them."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.errors import ParameterOutOfRange

Fields = dict[str, JsonValue]
Payload = Mapping[str, JsonValue]


def whole(said: Payload, name: str, default: int, least: int = 1) -> int:
    """Return an integer of `least` or more. Raises ParameterOutOfRange."""
    value = number_in(said.get(name, default))
    if isinstance(said.get(name), bool):
        value = int(bool(said[name]))
    if value is None or value != int(value) or not least <= value <= 8_192:
        raise ParameterOutOfRange(f"{name} must be an integer of {least} or more.", field=name)
    return int(value)


def object_in(said: Payload, name: str) -> dict[str, JsonValue]:
    """Return an object; an empty one for what says nothing. Raises ParameterOutOfRange."""
    value = said.get(name, {})
    if value in ({}, [], ""):
        return {}
    if not isinstance(value, dict):
        raise ParameterOutOfRange(f"{name} must be an object.", field=name)
    return value
