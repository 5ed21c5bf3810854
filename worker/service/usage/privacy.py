"""Redaction of log lines: callers' words, images and keys while their jobs run, and the operator's secrets.

This worker's own lines are written without them. Redaction is for the texts of libraries: an exception that quotes its
input is logged because its text helps, and only this module knows which inputs are private.
"""

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice

from pydantic import BaseModel, SecretStr

from worker.core.errors import WorkerError
from worker.service.usage.quotations import LONGEST, Quotations

_LOG = logging.getLogger(__name__)
_HIDDEN = "[private]"
# Fields whose texts are the caller's own affair; model names, tasks and schedulers are not.
_PRIVATE = re.compile(
    r"prompt|text|instruct|caption|trigger|samples|sticky|archive|image|mask|video|secret|token|key|access|password",
    re.IGNORECASE,
)
_FEWEST = 4  # characters of a text that is looked for
_LONGEST = 8_192
# Of what looks like base64 the beginning will do; a pattern finds the rest.
_BASE64 = re.compile(r"(data:[^,]{0,100},)?[A-Za-z0-9+/=_-]{128}")
_GLANCE = 256
_PATTERNS = (
    (re.compile(r"[A-Za-z0-9+/=_-]{160,}"), "[base64]"),
    (re.compile(r"(https?://[^\s?'\"]{1,500})\?[^\s'\"]+"), r"\1?[private]"),
    (re.compile(r"\b(Bearer\s+|hf_)[A-Za-z0-9._~+/-]{8,}=*"), r"\1[private]"),
)
# The payload is not checked yet; beyond these bounds it is refused, or is no real job.
_DEEPEST, _MOST = 24, 1_000
# Characters of texts that are kept, or dropped, in one turn of the event loop: about two milliseconds.
_TURN = 16_384
# Characters of a line, of whose middle the rest is left out: what a library quotes whole may be a file.
_LINE = 16_384

_quotations = Quotations()


def keep_always(texts: Iterable[str]) -> None:
    """Keep these texts out of every line of this process."""
    for text in {text[:LONGEST] for text in texts if len(text) >= _FEWEST}:
        _quotations.add(text)


@contextmanager
def kept(request: object) -> Iterator[None]:
    """Keep the private texts of a request, or of JSON, out of every log line until the context ends."""
    texts = _texts_of(request)
    for text in texts:
        _quotations.add(text)
    try:
        yield
    finally:
        for text in texts:
            _quotations.drop(text)


@asynccontextmanager
async def kept_in_turns(request: object) -> AsyncIterator[None]:
    """Do as `kept` does, on an event loop that has others to serve while many texts are noted."""
    texts, added = _texts_of(request), list[str]()
    try:
        size = 0
        for text in texts:
            if size > _TURN:
                size = 0
                await asyncio.sleep(0)
            _quotations.add(text)
            added.append(text)
            size += len(text)
        yield
    finally:
        _drop_in_turns(added)


def unforeseen(error: Exception, request: object = None) -> WorkerError:
    """Return a WorkerError for an unforeseen exception. Its text goes only to the log, redacted."""
    with kept(request):
        _LOG.error("unforeseen %s\n%s", type(error).__name__, redact("".join(traceback.format_exception(error))))
    return WorkerError("The worker failed on this job in an unforeseen way; its log has the details.")


def redact(line: str) -> str:
    """Return `line` without private texts."""
    if len(line) > _LINE:
        line = _shortened(_without_patterns(line))
    return _without_patterns(_quotations.hide(line, _HIDDEN))


def _without_patterns(line: str) -> str:
    for pattern, replacement in _PATTERNS:
        line = pattern.sub(replacement, line)
    return line


def _shortened(line: str) -> str:
    if len(line) <= _LINE:
        return line
    half = _LINE // 2
    return f"{line[:half]} [{len(line) - 2 * half} characters are left out] {line[-half:]}"


def _drop_in_turns(texts: list[str]) -> None:
    size = 0
    while texts and size <= _TURN:
        text = texts.pop()
        _quotations.drop(text)
        size += len(text)
    if texts:
        asyncio.get_running_loop().call_soon(_drop_in_turns, texts)


def _texts_of(request: object) -> list[str]:
    return list(dict.fromkeys(islice(_private(request), _MOST)))


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
    elif inside and isinstance(value, str) and len(value) >= _FEWEST:
        yield value[: _GLANCE if _BASE64.match(value) else _LONGEST]
