"""The JSON of an answer's body: nearly all of it is images, and /run holds each of them twice."""

import json
import secrets

from pydantic_core import PydanticSerializationError, to_json

from worker.wire.result import Base64

# From here on a text is written once, however often it stands in a body.
LONG = 50_000


def written(body: object) -> bytes:
    """Write `body` as JSON that every reader takes: no NaN, and no half of a surrogate pair.

    A search of megabytes for characters to escape takes milliseconds. So a mark stands in for a long text, until the
    rest is written.
    """
    mark = secrets.token_hex(16)
    texts: dict[int, str] = {}  # by identity: to compare them would take as long

    first, *segments = _plainly(_marked(body, mark, texts)).split(f'"{mark}'.encode())
    parts = {str(key).encode(): _long(text) for key, text in texts.items()}
    pieces = [first]
    for piece in segments:
        key, _, after = piece.partition(b'"')
        pieces += (*parts[key], after)
    return b"".join(pieces)


def _marked(value: object, mark: str, texts: dict[int, str]) -> object:
    """Return `value` with a mark in the place of each long text, which is noted.

    Not a function within the other: one that calls itself is garbage that has to be searched for, with all its texts.
    """
    if isinstance(value, dict):
        return {key: _marked(item, mark, texts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, mark, texts) for item in value]
    if isinstance(value, str) and len(value) >= LONG:
        texts[id(value)] = value
        return f"{mark}{id(value)}"
    return value


def _long(text: str) -> tuple[bytes, ...]:
    """Write `text` as pieces of JSON; in base64 nothing is escaped."""
    return (b'"', text.encode(), b'"') if isinstance(text, Base64) else (_plainly(text),)


def _plainly(value: object) -> bytes:
    try:
        return to_json(value, inf_nan_mode="null")  # in a tenth of json's time
    except PydanticSerializationError:  # half a surrogate pair
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
