"""Where a line quotes private texts: an index that is filled once for each text, and asked by every line.

A line quotes a text if it holds 16 characters in a row of it, or the whole of a shorter one. Of a long text every fifth
run of 12 characters is noted: any 16 characters in a row hold one of those. A line looks its own runs up and compares
what stands beside them. So a line costs time by its own length, whatever is kept, and a text about 1.6 bytes a
character.

A run that many kept texts share is not noted again. Where a line holds it, it counts as quoted: without that, somebody
could send a thousand texts made of the words of our own lines, and each line would be compared with all of them.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PIECE = 16
"""Characters in a row that count as a quotation of a text that has as many."""
_RUN, _STEP = 12, 5  # _RUN + _STEP - 1 == PIECE
_BESIDE = PIECE - _RUN
_SHORT = 4  # characters by which a shorter text is looked up, and the fewest that a text may have
# An entry: three bytes of the run's digest, three of the text's number, two of the run's place in it.
_ENTRY, _MARK, _BITS = 8, 3, 0xFFFFFF
_SHELVES = 1 << 14
MANY = 32
"""Entries of a run from which on more of it are only counted. Looked at when a shelf has grown by as many."""
_LOOK = MANY * _ENTRY
LONGEST = 1 << 16
"""Characters of a text that can be kept."""

_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\u[0-9a-fA-F]{4}|\\U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[abfnrtv0'\"\\/]"
)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
_DEEPEST = 3  # escapes in escapes: the repr of a JSON text in a JSON text


@dataclass(slots=True)
class _Kept:
    text: str
    number: int
    uses: int = 1
    uncounted: list[int] = field(default_factory=list)  # digests of runs that were only counted


class Quotations:
    """The kept texts. Safe in all threads; a log line written while it works may come back to it."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._numbered: dict[int, _Kept] = {}
        self._next = 0
        self._shelves = [bytearray() for _ in range(_SHELVES)]
        self._common: dict[int, int] = {}  # digest of a run -> how many kept texts hold it uncounted
        self._short: dict[str, set[str]] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """The bytes of the index, without the texts themselves."""
        return sum(map(len, self._shelves))

    def add(self, text: str) -> None:
        """Keep `text`, of 4 to `LONGEST` characters, until it is dropped as often as it was added."""
        with self._lock:
            if kept := self._kept.get(text):
                kept.uses += 1
                return
            kept = self._kept[text] = _Kept(text, self._new_number())
            if len(text) < PIECE:
                self._short.setdefault(text[:_SHORT], set()).add(text)
                return
            self._numbered[kept.number] = kept
            common = self._common
            for digest, shelf, entry in self._entries(kept):
                if digest in common or (len(shelf) % _LOOK == 0 and shelf.count(entry[:_MARK]) >= MANY):
                    common[digest] = common.get(digest, 0) + 1
                    kept.uncounted.append(digest)
                else:
                    shelf += entry

    def drop(self, text: str) -> None:
        """Take one use of `text` back; with the last one nothing of it is left."""
        with self._lock:
            kept = self._kept[text]
            kept.uses -= 1
            if kept.uses:
                return
            del self._kept[text]
            if len(text) < PIECE:
                alike = self._short[text[:_SHORT]]
                alike.remove(text)
                if not alike:
                    del self._short[text[:_SHORT]]
                return
            del self._numbered[kept.number]
            for digest in kept.uncounted:
                self._common[digest] -= 1
                if not self._common[digest]:
                    del self._common[digest]
            for _, shelf, entry in self._entries(kept):
                at = _find(shelf, entry)
                if at >= 0:
                    del shelf[at : at + _ENTRY]

    def hide(self, line: str, instead: str) -> str:
        """Return `line` with `instead` in the place of every quotation, plain or escaped as Python and JSON do."""
        at, parts = 0, []
        for quoted in re.finditer(b"\1+", self.hidden(line)):
            parts += [line[at : quoted.start()], instead]
            at = quoted.end()
        return "".join([*parts, line[at:]])

    def hidden(self, line: str) -> bytearray:
        """Return a byte for each character of `line`: 1 for what is quoted, 0 for what is not."""
        marks = bytearray(len(line))
        if not self._kept:
            return marks
        view: str = line
        places: Sequence[int] = range(len(line) + 1)
        with self._lock:
            for _ in range(_DEEPEST):
                for start, end in self._quotations(view):
                    first, last = places[start], places[end]
                    marks[first:last] = b"\1" * (last - first)
                plain = _unescaped(view, places)
                if plain is None:
                    break
                view, places = plain
        return marks

    def _quotations(self, line: str) -> Iterator[tuple[int, int]]:
        """Yield where `line` quotes a kept text. Two of them may overlap."""
        if self._short:
            for start in range(len(line) - _SHORT + 1):
                yield from ((start, start + len(text)) for text in _alike(self._short, line, start))
        shelves, common = self._shelves, self._common
        start, last = 0, len(line) - _RUN if self._numbered else -1
        while start <= last:
            digest = hash(line[start : start + _RUN])
            shelf = shelves[digest % _SHELVES]
            # Most runs end here: this loop is what a line costs.
            if shelf and (entry := shelf.find((digest // _SHELVES & _BITS).to_bytes(_MARK, "little"))) >= 0:
                spans = [*self._compared(line, start, shelf, entry)]
                yield from spans
                # What is quoted so far need not be looked up again, but for an end with which a next quotation begins.
                start = max([start, *(end - PIECE for _, end in spans)])
            if digest in common:
                yield start, start + _RUN
            start += 1

    def _compared(self, line: str, start: int, shelf: bytearray, entry: int) -> Iterator[tuple[int, int]]:
        """Yield the quotations around a run of `line` whose first entry on its shelf stands at `entry`."""
        mark = bytes(shelf[entry : entry + _MARK])
        while (entry := _find(shelf, mark, entry)) >= 0:
            noted = int.from_bytes(shelf[entry : entry + _ENTRY], "little")
            kept = self._numbered.get(noted >> 24 & _BITS)
            if kept and (span := _common_span(line, start, kept.text, noted >> 48)):
                yield span
            entry += _ENTRY

    def _entries(self, kept: _Kept) -> Iterator[tuple[int, bytearray, bytes]]:
        """Yield the digest of each noted run of a text, the shelf for its entry, and the entry."""
        shelves, text, number = self._shelves, kept.text, kept.number << 24
        for at in range(0, len(text) - _RUN + 1, _STEP):
            digest = hash(text[at : at + _RUN])
            entry = (digest // _SHELVES & _BITS) | number | at << 48
            yield digest, shelves[digest % _SHELVES], entry.to_bytes(_ENTRY, "little")

    def _new_number(self) -> int:
        while self._next in self._numbered:
            self._next = (self._next + 1) & _BITS
        return self._next


def _find(shelf: bytearray, entry: bytes, start: int = 0) -> int:
    """Return where an entry that begins like this stands, or -1."""
    at = shelf.find(entry, start)
    while at >= 0 and at % _ENTRY:
        at = shelf.find(entry, at + 1)
    return at


def _alike(short: dict[str, set[str]], line: str, start: int) -> list[str]:
    alike = short.get(line[start : start + _SHORT])
    if not alike:
        return []
    heads = (line[start : start + length] for length in range(_SHORT, PIECE))
    return [head for head in heads if head in alike]


def _common_span(line: str, start: int, text: str, place: int) -> tuple[int, int] | None:
    """Return where `line` quotes `text` around a run that both hold, or None if that is too little."""
    if line[start : start + _RUN] != text[place : place + _RUN]:
        return None
    left = 0  # what stands further to the left was looked up before
    while left < min(_BESIDE, start, place) and line[start - left - 1] == text[place - left - 1]:
        left += 1
    end, stop, length = start + _RUN, place + _RUN, 1024
    while length:  # in halves: what is quoted may be long
        if line[end : end + length] == text[stop : stop + length] and end < len(line) and stop < len(text):
            end, stop = min(end + length, len(line)), min(stop + length, len(text))
        else:
            length //= 2
    return (start - left, end) if end - start + left >= PIECE else None


def _unescaped(view: str, places: Sequence[int]) -> tuple[str, list[int]] | None:
    """Return `view` without its escapes, and where each character stands in the line; None if there are none."""
    if "\\" not in view:
        return None
    parts: list[str] = []
    starts: list[int] = []
    at = 0
    for escape in _ESCAPES.finditer(view):
        parts += [view[at : escape.start()], _meant(escape[0])]
        starts += [*places[at : escape.start()], places[escape.start()]]
        at = escape.end()
    if not parts:
        return None
    return "".join([*parts, view[at:]]), [*starts, *places[at:]]


def _meant(escape: str) -> str:
    """Return the one character that an escape stands for."""
    if escape[1] not in "uUx":
        return _LETTERS.get(escape[1], escape[1])
    if len(escape) == 12:  # two halves of one character, as JSON has it
        return (chr(int(escape[2:6], 16)) + chr(int(escape[8:], 16))).encode("utf-16", "surrogatepass").decode("utf-16")
    return chr(int(escape[2:], 16))
