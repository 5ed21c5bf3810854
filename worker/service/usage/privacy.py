"""What no log line may hold: callers' words, images and keys while their jobs run, and the operator's secrets.

The lines themselves are written without them. This is for what others put into theirs: a library's exception that
quotes its input is logged because its text helps, and whose input that was can only be known here.
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
# So much of a private text in a row is a piece of it.
_PIECE = 16
_LONGEST = 8_192
_GLANCE = 256  # of what has no blank in it, as base64; the rest is known by its looks
_PATTERNS = (
    (re.compile(r"[A-Za-z0-9+/=_-]{160,}"), "[base64]"),
    (re.compile(r"(https?://[^\s?'\"]{1,500})\?[^\s'\"]+"), r"\1?[private]"),
    (re.compile(r"\b(Bearer\s+|hf_)[A-Za-z0-9._~+/-]{8,}=*"), r"\1[private]"),
)
# Nothing is known of the payload yet: beyond these it is refused, or is no job that anybody sends.
_DEEPEST, _MOST = 24, 1_000

_ids = count()
_kept: dict[int, tuple[str, ...]] = {}
_secrets: set[str] = set()


def keep_always(texts: Iterable[str]) -> None:
    """Let these texts be in no line of this process."""
    _secrets.update(text for text in texts if len(text) > 3)


@contextmanager
def kept(request: object) -> Iterator[None]:
    """Let what is private in a request, or in JSON, be in no line, whoever writes it, until this is left."""
    own = next(_ids)
    _kept[own] = tuple(dict.fromkeys(islice(_private(request), _MOST)))
    try:
        yield
    finally:
        del _kept[own]


def unforeseen(error: Exception, request: object = None) -> WorkerError:
    """Our name for an exception that nothing on the road foresaw; its text goes to the log only, redacted."""
    with kept(request):
        _LOG.error("unforeseen %s\n%s", type(error).__name__, redact("".join(traceback.format_exception(error))))
    return WorkerError("The worker failed on this job in an unforeseen way; its log has the details.")


def redact(line: str) -> str:
    """`line` without what is private."""
    texts = [*_secrets, *(text for own in [*_kept.values()] for text in own)]
    for text in sorted(texts, key=len, reverse=True):
        for written in {text, repr(text)[1:-1], json.dumps(text)[1:-1]}:
            line = line.replace(written, _HIDDEN)
    line = _without_pieces(line, texts)
    for pattern, shown in _PATTERNS:
        line = pattern.sub(shown, line)
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
    """`line` without pieces of these texts: libraries shorten what they quote."""
    pieces = {text[at : at + _PIECE] for text in texts for at in range(len(text) - _PIECE + 1)}
    hidden = bytearray(len(line))
    for at in range(len(line) - _PIECE + 1):
        if line[at : at + _PIECE] in pieces:
            hidden[at : at + _PIECE] = b"\1" * _PIECE
    parts = groupby(range(len(line)), key=hidden.__getitem__)
    return "".join(_HIDDEN if is_hidden else "".join(line[at] for at in where) for is_hidden, where in parts)
