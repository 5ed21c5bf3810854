"""Failures as callers get them, at every door."""

import math
from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.errors import WorkerError
from worker.wire.texts import utf8


def encode_error(error: WorkerError, request_id: str) -> dict[str, JsonValue]:
    """Write a failure as callers get it. Strings are made valid UTF-8: half a surrogate pair would lose the answer."""
    body: dict[str, JsonValue] = {
        "error": utf8(error.message) or "The job failed.",
        "code": error.code,
        "retryable": error.retryable,
        "request_id": utf8(request_id),
    }
    if error.field:
        body["field"] = utf8(error.field)
    if error.hint:
        body["hint"] = utf8(error.hint)
    if error.details:
        body["details"] = _plain(error.details)
    return body


def _plain(value: object) -> JsonValue:
    if isinstance(value, str):
        return utf8(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {utf8(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return utf8(str(value))
