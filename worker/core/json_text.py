"""JSON from anyone: counted before it is parsed, since two bytes of it become a hundred in memory.

A megabyte of `[[],[],…` is 27 megabytes of lists, and parsing it holds every thread of the process. Counting goes by
blocks at the speed of a search, keeps nothing, and lets other threads run in between.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from json import detect_encoding
from typing import Any

from pydantic_core import from_json

_BLOCK = 256 * 1024
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = b"[{"


class JsonTooLarge(ValueError):
    """JSON holds more than is read. Its text completes the sentence "it …"."""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """Bounds on JSON: values of all kinds, texts (keys too) among them, and how deep they are nested."""

    values: int = 200_000
    texts: int = 400_000
    depth: int = 64


USUAL = JsonLimits()


def parse_bounded(
    text: bytes | bytearray | memoryview | str,
    limits: JsonLimits = USUAL,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON within `limits`. Raises JsonTooLarge, and ValueError for what is no JSON."""
    if not isinstance(text, str) and not (encoding := detect_encoding(bytes(text[:4]))).startswith("utf-8"):
        text = str(text, encoding)  # as some editors of Windows write it
    check_counts(text, limits)
    if pairs_hook is None:
        with suppress(ValueError):  # which `json` explains, or reads all the same: a mark at its beginning, half a pair
            return from_json(bytes(text) if isinstance(text, memoryview) else text)
    plain = text if isinstance(text, str) else str(text, "utf-8-sig")
    try:
        return json.loads(plain, object_pairs_hook=pairs_hook)
    except RecursionError:  # called from deep inside something else
        raise JsonTooLarge(f"is nested more than {limits.depth} deep") from None


def check_counts(text: bytes | bytearray | memoryview | str, limits: JsonLimits = USUAL) -> None:
    """Raise JsonTooLarge if what precedes the first fault in `text` holds more than `limits`."""
    in_string, escape, quotes, values = False, b"", 0, 1
    depth = 0
    for start in range(0, len(text), _BLOCK):
        part = text[start : start + _BLOCK]
        block = escape + (part.encode("utf-8", "surrogatepass") if isinstance(part, str) else bytes(part))
        # Backslashes go in pairs, also over the border of two blocks.
        escape = block[-1:] if (len(block) - len(block.rstrip(b"\\"))) % 2 else b""
        block = block[: len(block) - len(escape)]
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        if in_string and b'"' not in block:
            continue
        parts = block.split(b'"')
        outside = b"".join(parts[in_string::2])
        quotes += len(parts) - 1
        in_string ^= len(parts) % 2 == 0
        brackets = outside.translate(None, _NO_BRACKETS)
        values += outside.count(b",") + brackets.count(b"[") + brackets.count(b"{")
        if values > limits.values:
            raise JsonTooLarge(f"holds more than {limits.values:,} values")
        if quotes > 2 * limits.texts:
            raise JsonTooLarge(f"holds more than {limits.texts:,} texts")
        depth = _deepest(brackets, depth, limits.depth)


def _deepest(brackets: bytes, depth: int, limit: int) -> int:
    """Return the depth after these brackets. Raises JsonTooLarge as soon as it is over `limit`."""
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > limit:
            raise JsonTooLarge(f"is nested more than {limit} deep")
    return depth
