"""A library's own words about its failure, as far as a caller may read them: no text of a job, no path, link or key."""

import ast
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from worker.core.errors import ParameterOutOfRange
from worker.core.job import Job

_MAX_CHARS = 300
# The libraries whose sentences are about parameters and shapes. What others say is for the log.
_LIBRARIES = ("diffusers", "transformers", "torch")
_REDACTED = (
    (re.compile(r"\b\w+://\S+"), "[link]"),
    (re.compile(r"(?<![\w/])(~|\.{1,2})?(/[^\s/'\"`,;:()]+){2,}/?"), "[path]"),
    (re.compile(r"(?<=['\"`])[~/][^'\"`]*(?=['\"`])"), "[path]"),
    (re.compile(r"\b[A-Za-z]:\\[^\s,;]+"), "[path]"),
    (re.compile(r"\b(hf|sk|rpa|r8|ghp|fal)[_-][\w-]{6,}"), "[key]"),
    (re.compile(r"[\w+/=-]{40,}"), "[…]"),
    (re.compile(r" at 0x[0-9a-f]+"), ""),
)
# Values, whose numbers are a job's pixels or its prompt's tokens.
_VALUES = re.compile(r"tensor\(|array\(|\[\d+(\.\d+)?(, ?\d+(\.\d+)?){4,}")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|:.*$")
_WORD = re.compile(r"\w+")
_MISSING_PACKAGE = re.compile(
    r"requires the (\S+) library but it was not found|need to have (\S+) installed|No module named '(\w+)"
)
_TOO_LONG = re.compile(r"^prompt has (\d+) tokens, exceeds max_sequence_length=(\d+)$")
_UNDEFINED = re.compile(r"name '(\w+)' is not defined")


def complaint(error: BaseException, private: Iterable[str] = ()) -> str | None:
    """Return the sentence of `error` for a caller; None if no library wrote it, or if it may quote a `private` text."""
    raised_by = _raised_by(error)
    text = " ".join(str(error).split())
    if raised_by not in _LIBRARIES or " " not in text or not text.isascii() or _VALUES.search(text):
        return None
    if any(_quotes(text, each) for each in private):
        return None
    for pattern, replacement in _REDACTED:
        text = pattern.sub(replacement, text)
    if len(text) > _MAX_CHARS:
        text = text[: _MAX_CHARS - 1].rsplit(" ", 1)[0] + "…"
    return text.rstrip(".")


def texts_of(job: Job) -> Iterator[str]:
    """Yield everything that a job's caller wrote."""
    yield from _strings([job.prompt, job.negative_prompt, job.request.prompt, dict(job.params)])


@contextmanager
def long_prompts_refused() -> Iterator[None]:
    """Refuse what a pipeline says is too long for it: only its tokenizer can count a prompt's tokens.

    Raises ParameterOutOfRange, after which the pipeline goes on; any other error of its own takes it off the device.
    """
    try:
        yield
    except ValueError as error:
        found = _TOO_LONG.search(str(error))
        if found is None:
            raise
        raise ParameterOutOfRange(
            f"prompt has {found[1]} tokens and max_sequence_length is {found[2]}; shorten it, or send a larger "
            "max_sequence_length.",
            field="prompt",
        ) from None


def missing_package(error: BaseException) -> str | None:
    """Return the package that is not installed and that `error` comes of; None for another error."""
    seen: BaseException | None = error
    while seen is not None:
        if (package := _named_package(seen)) is not None:
            return package
        seen = seen.__cause__
    return None


def _named_package(error: BaseException) -> str | None:
    """Python names it; the libraries' messages hold its name; or it is what an undefined name would come from."""
    if isinstance(error, ImportError) and error.name is not None:
        root = error.name.partition(".")[0]
        return root if root not in _LIBRARIES else None
    if isinstance(error, ImportError | ValueError | RuntimeError) and (match := _MISSING_PACKAGE.search(str(error))):
        return str(match[match.lastindex or 0]).lower()
    if isinstance(error, NameError) and (match := _UNDEFINED.search(str(error))):
        frames = traceback.extract_tb(error.__traceback__)
        package = _optional_imports(frames[-1].filename).get(match[1]) if frames else None
        return package if package is not None and not _is_installed(package) else None
    return None


@lru_cache(maxsize=32)
def _optional_imports(path: str) -> Mapping[str, str]:
    """Return the names that a module imports under a condition only, each with its package."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    names: dict[str, str] = {}
    for node in (inner for outer in tree.body if isinstance(outer, ast.If) for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: node.module.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).partition(".")[0]: alias.name.partition(".")[0] for alias in node.names
            }
    return names


def _is_installed(package: str) -> bool:
    return package in sys.modules or find_spec(package) is not None


def _raised_by(error: BaseException) -> str:
    """Return the package whose code raised `error`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def _quotes(text: str, private: str) -> bool:
    """True if `text` may hold words of `private`: two in a row anywhere, or one where something is quoted."""
    said, written = _words(text), _words(private)
    if not written:
        return False
    if len(written) == 1:
        return written[0] in said
    quoted = {word for part in _QUOTED.findall(text) for word in _words(part) if len(word) > 2}
    pairs = set(pairwise(said))
    return bool(quoted & set(written)) or not pairs.isdisjoint(pairwise(written))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
