"""Redaction of log lines: callers' words, images and keys while their jobs run, and the operator's secrets.

This worker's own lines are written without them. Redaction is for the texts of libraries: an exception that quotes its
input is logged because its text helps, and only this module knows which inputs are private.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, groupby, islice

from pydantic import BaseModel, SecretStr

from worker.core.errors import WorkerError

_LOG = logging.getLogger(__name__)
_HIDDEN = "[private]"
# Fields whose texts are the caller's own affair; model names, tasks and schedulers are not.
_PRIVATE = re.compile(r"prompt|text|instruct|caption|image|mask|video|secret|token|key|access|password", re.IGNORECASE)
# Characters in a row that count as a piece of a private text.
_PIECE = 16
_LONGEST = 8_192
_GLANCE = 256  # of a text without a blank, such as base64; a pattern finds the rest
_PATTERNS = (
    (re.compile(r"[A-Za-z0-9+/=_-]{160,}"), "[base64]"),
    (re.compile(r"(https?://[^\s?'\"]{1,500})\?[^\s'\"]+"), r"\1?[private]"),
    (re.compile(r"\b(Bearer\s+|hf_)[A-Za-z0-9._~+/-]{8,}=*"), r"\1[private]"),
)
# The payload is not checked yet; beyond these bounds it is refused, or is no real job.
_DEEPEST, _MOST = 24, 1_000

_ids = count()
_kept: dict[int, tuple[str, ...]] = {}
_secrets: set[str] = set()


def keep_always(texts: Iterable[str]) -> None:
    """Keep these texts out of every line of this process."""
    _secrets.update(text for text in texts if len(text) > 3)


@contextmanager
def kept(request: object) -> Iterator[None]:
    """Keep the private texts of a request, or of JSON, out of every log line until the context ends."""
    number = next(_ids)
    _kept[number] = tuple(dict.fromkeys(islice(_private(request), _MOST)))
    try:
        yield
    finally:
        del _kept[number]


def unforeseen(error: Exception, request: object = None) -> WorkerError:
    """Return a WorkerError for an unforeseen exception. Its text goes only to the log, redacted."""
    with kept(request):
        _LOG.error("unforeseen %s\n%s", type(error).__name__, redact("".join(traceback.format_exception(error))))
    return WorkerError("The worker failed on this job in an unforeseen way; its log has the details.")


def redact(line: str) -> str:
    """Return `line` without private texts."""
    texts = [*_secrets, *(text for entry in [*_kept.values()] for text in entry)]
    for text in sorted(texts, key=len, reverse=True):
        for spelling in {text, repr(text)[1:-1], json.dumps(text)[1:-1]}:
            line = line.replace(spelling, _HIDDEN)
    line = _without_pieces(line, texts)
    for pattern, replacement in _PATTERNS:
        line = pattern.sub(replacement, line)
    return line


def _private(value: object, *, inside: bool = False, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _private(part, inside=inside or bool(_PRIVATE.search(str(name))), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _private(part, inside=inside, depth=depth + 1)
    elif inside and isinstance(value, str) and len(value) > 3:
        yield value[: _LONGEST if " " in value[:_GLANCE] else _GLANCE]


def _without_pieces(line: str, texts: list[str]) -> str:
    """Return `line` without pieces of these texts: libraries shorten their quotations."""
    pieces = {text[start : start + _PIECE] for text in texts for start in range(len(text) - _PIECE + 1)}
    hidden = bytearray(len(line))
    for start in range(len(line) - _PIECE + 1):
        if line[start : start + _PIECE] in pieces:
            hidden[start : start + _PIECE] = b"\1" * _PIECE
    parts = groupby(range(len(line)), key=hidden.__getitem__)
    return "".join(
        _HIDDEN if is_hidden else "".join(line[start] for start in positions) for is_hidden, positions in parts
    )
