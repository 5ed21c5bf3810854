"""A digest of values by content, so that two values can be compared by their digests."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath

from pydantic import BaseModel

from worker.core.image import KeptRaster


def fingerprint(value: object, leave_out: Mapping[type, frozenset[str]] | None = None) -> str:
    """Return the SHA-256 of `value`, however nested: equal for equal content, in any order of mappings and sets.

    `leave_out` names fields of dataclasses that do not count. An object of an unknown kind is equal to itself only:
    two objects that cannot be compared never count as the same.
    """
    return hashlib.sha256(repr(_plain(value, leave_out or {})).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object, leave_out: Mapping[type, frozenset[str]]) -> object:
    kind = type(value)
    if value is None or isinstance(value, str | int | float | PurePath):
        return kind.__name__, str(value)  # 1, 1.0 and True are not the same to a pipeline
    if isinstance(value, bytes | bytearray | memoryview):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, BaseModel):
        return kind.__name__, _named(value, type(value).model_fields, leave_out)
    if isinstance(value, KeptRaster):
        return kind.__name__, value.mode, value.width, value.height, value.digest
    if is_dataclass(value) and not isinstance(value, type):
        return kind.__name__, _named(value, (item.name for item in fields(value)), leave_out)
    if isinstance(value, Mapping):
        return "mapping", sorted((repr(_plain(key, leave_out)), _plain(item, leave_out)) for key, item in value.items())
    if isinstance(value, Set):
        return "set", sorted(repr(_plain(item, leave_out)) for item in value)
    if isinstance(value, Sequence):
        return "sequence", [_plain(item, leave_out) for item in value]
    return kind.__name__, id(value)


def _named(value: object, names: Iterable[str], leave_out: Mapping[type, frozenset[str]]) -> object:
    skipped = leave_out.get(type(value), frozenset())
    return _plain({name: getattr(value, name) for name in names if name not in skipped}, leave_out)
