"""Prompts that are mixed while an image is drawn, as AUTOMATIC1111's web UI reads them. Pure text: no tokenizer.

| written | means |
|---|---|
| `a AND b`, `a :1.2 AND b :0.8` | both prompts guide, each by its weight |
| `[a:b:0.5]`, `[a:b:12]` | a for half of the steps, or 12 of them, then b |
| `[b:0.5]`, `[a::0.5]` | b after half of the steps; a before |
| `[a\\|b]` | a at the first step, b at the second, a at the third … |

They may lie in one another. Square brackets of another kind are weights, which `prompt.py` reads.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

Mixture = tuple[tuple[str, float], ...]  # prompts and their weights

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"\s*(\d*\.?\d+)\s*")
_WEIGHTED = re.compile(r"(?P<text>.*?)(?:\s*:\s*(?P<weight>[-+]?\d*\.?\d+))?\s*", re.DOTALL)
_DEPTH = 8


@lru_cache(maxsize=1_024)
def mixture_at(prompt: str, step: int, steps: int) -> Mixture:
    """Return the prompts that guide at `step`, counted from 1, of `steps`, each with its weight."""
    parts = _AND.split(prompt)
    if len(parts) == 1 or not all(part.strip() for part in parts):
        return ((_at_step(prompt, step, steps), 1.0),)
    matches = [match for part in parts if (match := _WEIGHTED.fullmatch(part.strip()))]
    return tuple((_at_step(match["text"], step, steps), float(match["weight"] or 1)) for match in matches)


def is_mixed(prompt: str) -> bool:
    """True if `prompt` holds a mark that mixes prompts."""
    return mixture_at(prompt, 1, 10_000) != ((prompt, 1.0),) or mixture_at(prompt, 2, 2) != ((prompt, 1.0),)


def text_at(prompt: str, step: int, steps: int) -> str:
    """Return a prompt of which only one can be heard, as it is at `step`: AND is a word in it."""
    return _at_step(prompt, step, steps)


def changes(prompt: str) -> bool:
    """True if `prompt` is another text at some steps than at others, or than it is written."""
    return text_at(prompt, 1, 10_000) != prompt or text_at(prompt, 2, 2) != prompt


def _at_step(text: str, step: int, steps: int, depth: int = 0) -> str:
    """Return `text` as it is at one step."""
    out, at = "", 0
    for start, end in _brackets(text):
        inner = text[start + 1 : end]
        choices, timed = _split(inner, "|"), _split(inner, ":")
        chosen: str | None = None
        if len(choices) > 1:
            chosen = choices[(step - 1) % len(choices)]
        elif len(timed) in (2, 3) and (number := _NUMBER.fullmatch(timed[-1])):
            before = timed[0] if len(timed) == 3 else ""
            chosen = before if step <= _last_step(number[1], steps) else timed[-2]
        inside = inner if chosen is None else chosen
        inside = _at_step(inside, step, steps, depth + 1) if depth < _DEPTH else inside
        out += text[at:start] + (f"[{inside}]" if chosen is None else inside)
        at = end + 1
    return out + text[at:]


def _last_step(number: str, steps: int) -> int:
    """Return the last step before the change: a share of all steps where the number has a point, else the step."""
    return min(steps, int(float(number) * steps if "." in number else float(number)))


def _brackets(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each outermost pair of square brackets begins and ends; one that is never closed is a character."""
    opened: list[int] = []
    for at, char in _marks(text):
        if char == "[":
            opened.append(at)
        elif char == "]" and opened:
            start = opened.pop()
            if not opened:
                yield start, at


def _split(text: str, separator: str) -> list[str]:
    """Split `text` at a separator outside of all brackets."""
    parts, depth, start = [], 0, 0
    for at, char in _marks(text):
        if char in "[(":
            depth += 1
        elif char in "])":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _marks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the characters that no backslash stands before, with their places."""
    escaped = False
    for at, char in enumerate(text):
        if not escaped and char != "\\":
            yield at, char
        escaped = char == "\\" and not escaped
