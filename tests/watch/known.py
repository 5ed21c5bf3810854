"""The private texts of a test run, in every spelling in which a line or a file could hold them."""

import ast
import base64
import binascii
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.watch.inside.privacy_entrances import IMAGE, SHORTEST, SHOWN_WORDS, WORDS

_PROMPTS = ("prompt", "inputs")  # what doors call it
_WORKER = Path(__file__).parents[2] / "worker"
# What a text must have to be one that is nowhere by chance: "00000000" is in many a line.
_DIFFERENT = 5
_PIECE = 24  # a library that quotes a long text cuts it: so much of its beginning or end is found
_LONG = 2 * _PIECE
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
# The same in base64, wherever it stands and however soon it was cut.
_IMAGE_BEGINS = re.compile(r"iVBORw0KGgo|/9j/4[A-Za-z0-9+/]{24}|UklGR[A-Za-z0-9+/]{24}|R0lGOD[A-Za-z0-9+/]{24}")


@dataclass(frozen=True, slots=True)
class Leak:
    """One private text in one place. Its text says which without telling it."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.text[:4]!r}… of {len(self.text)} characters"


class Known:
    """What is known to be private."""

    def __init__(self) -> None:
        self._by_beginning: dict[str, dict[str, Leak]] = {}
        self._told: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._told)

    def add(self, kind: str, text: str) -> None:
        """Know `text` from now on. What is too short or too monotonous to be told from chance is let go."""
        if (kind, text) in self._told or len(text) < SHORTEST or len(set(text)) < _DIFFERENT or text in _own_words():
            return
        self._told.add((kind, text))
        for spelling in _spellings(kind, text):
            if len(spelling) >= SHORTEST and len(set(spelling)) >= _DIFFERENT:
                found = self._by_beginning.setdefault(spelling[:SHORTEST], {})
                # Words that one job asked to be shown and another did not are private.
                if kind != SHOWN_WORDS or spelling not in found:
                    found[spelling] = Leak(kind, text)

    def forget_words(self) -> None:
        """Keep keys and images only, which no other test writes by chance."""
        self._told = {(kind, text) for kind, text in [*self._told] if kind not in (WORDS, SHOWN_WORDS)}
        for beginning, found in [*self._by_beginning.items()]:
            kept = {spelling: leak for spelling, leak in [*found.items()] if (leak.kind, leak.text) in self._told}
            if kept:
                self._by_beginning[beginning] = kept
            else:
                del self._by_beginning[beginning]

    def leaks(self, text: str) -> list[Leak]:
        """Every private text in `text`, once, and what looks like an image in base64."""
        return [*dict.fromkeys(self._search(text))]

    def _search(self, text: str) -> Iterator[Leak]:
        windows = {text[at : at + SHORTEST] for at in range(len(text) - SHORTEST + 1)}
        for beginning in self._by_beginning.keys() & windows:
            for spelling, leak in self._by_beginning[beginning].items():
                if spelling in text:
                    yield leak
        if found := _IMAGE_BEGINS.search(text):
            yield Leak(IMAGE, found[0])
        yield from (Leak(IMAGE, run[0]) for run in _BASE64.finditer(text) if _is_image(run[0]))


@functools.cache
def _own_words() -> frozenset[str]:
    """The texts in the worker's own source, but for the prompts of its examples, in whatever field of a job they stand.

    Every book names a job's task and its stages; and Hypothesis fills a field with a text of the source now and then.
    """
    trees = (ast.parse(path.read_bytes()) for path in _WORKER.rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    pairs = [pair for node in nodes if isinstance(node, ast.Dict) for pair in zip(node.keys, node.values, strict=True)]
    prompts = {_text(value) for name, value in pairs if _text(name) in _PROMPTS}
    return frozenset(text for text in map(_text, nodes) if text is not None and text not in prompts)


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _spellings(kind: str, text: str) -> set[str]:
    if kind == IMAGE:
        data = text.partition("base64,")[2] or text
        return {data[:64], data[len(data) // 2 :][:32]}
    whole = {text, repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    sent = text.encode("utf-8", "replace")
    whole |= {quote(sent, safe=""), quote_plus(sent)}
    if kind in (WORDS, SHOWN_WORDS) and len(text) >= _LONG:  # of sentences: paths and links begin alike
        whole |= {piece for piece in (text[:_PIECE], text[-_PIECE:]) if " " in piece}
    return whole


def _is_image(run: str) -> bool:
    try:
        beginning = base64.b64decode(run[:16].replace("-", "+").replace("_", "/"))
    except binascii.Error:
        return False
    return beginning.startswith(_MAGIC) or beginning[4:8] == b"ftyp"
