"""Weights in a prompt, as Stable Diffusion's users write them since AUTOMATIC1111's web UI. Pure text: no tokenizer.

| written | means |
|---|---|
| `(word)`, `((word))` | weight 1.1, and 1.1 x 1.1 |
| `[word]` | weight 1 / 1.1 |
| `(word:1.3)` | weight 1.3; it multiplies with the brackets around it |
| `BREAK` | what follows begins a new chunk of the text encoder |
| `\\(` `\\)` `\\[` `\\]` `\\\\` | the character itself |

A bracket that is never closed weighs everything after it, and one that was never opened is a character.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

# The text encoders of a pipeline: one CLIP, two CLIPs side by side, a CLIP for the whole prompt and a T5 for its words
# (FLUX.1), or two CLIPs before a T5 (Stable Diffusion 3).
PromptForm = Literal["clip", "clip-pair", "clip-t5", "clip-pair-t5"]
# The cases in which weights are read: a prompt has any or is too long for the pipeline's own way; always; never.
PromptWeighting = Literal["auto", "a1111", "none"]
PROMPT_WEIGHTINGS: tuple[PromptWeighting, ...] = ("auto", "a1111", "none")

STEP = 1.1
_NUMBER = r"[+-]?(?:\d{1,4}(?:\.\d{0,6})?|\.\d{1,6})"
_TOKEN = re.compile(
    rf"\\(?P<escaped>[()\[\]\\])|(?P<open>[(\[])|:\s*(?P<weight>{_NUMBER})\s*\)|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
_EXPLICIT = re.compile(rf"(?<!\\)\([^()]*:\s*{_NUMBER}\s*\)|\bBREAK\b")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt with one weight."""

    text: str
    weight: float = 1.0


Section = tuple[Piece, ...]


@lru_cache(maxsize=64)
def parse_prompt(prompt: str) -> tuple[Section, ...]:
    """Return the pieces of `prompt`, in the sections that BREAK parts it into; one empty section for no prompt."""
    pieces: list[list[str | float]] = []  # text, weight
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the first piece of each open bracket

    def weigh(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] = float(piece[1]) * factor

    for match in _TOKEN.finditer(prompt):
        kind, text = match.lastgroup, match.group()
        if kind == "open":
            opened[text].append(len(pieces))
        elif kind == "weight" and opened["("]:
            weigh(opened["("].pop(), float(match["weight"]))
        elif kind == "close" and opened["(" if text == ")" else "["]:
            weigh(opened["(" if text == ")" else "["].pop(), STEP if text == ")" else 1 / STEP)
        else:
            pieces.append([match["escaped"] or text, 1.0])
    for bracket, starts in opened.items():
        for start in starts:
            weigh(start, STEP if bracket == "(" else 1 / STEP)
    return _sections([(str(text), float(weight)) for text, weight in pieces])


def holds_weights(prompt: str, *, explicit: bool = False) -> bool:
    """True if `prompt` holds weights or BREAK; with `explicit`, brackets count only with a number.

    Prose has brackets too, and the encoders that read prose should get them.
    """
    if explicit:
        return _EXPLICIT.search(prompt) is not None
    return parse_prompt(prompt) != ((Piece(prompt),) if prompt else (),)


def _sections(pieces: list[tuple[str, float]]) -> tuple[Section, ...]:
    """Join neighbours of one weight, and part them at BREAK; sections without a word are left out."""
    joined: list[Piece] = []
    for text, weight in pieces:
        if joined and joined[-1].weight == weight:
            joined[-1] = Piece(joined[-1].text + text, weight)
        else:
            joined.append(Piece(text, weight))
    sections: list[list[Piece]] = [[]]
    for piece in joined:
        first, *others = _BREAK.split(piece.text)
        for index, text in enumerate((first, *others)):
            if index:
                sections.append([])
            if text:
                sections[-1].append(Piece(text, piece.weight))
    filled = [tuple(section) for section in sections if any(piece.text.strip() for piece in section)]
    if filled:
        return tuple(filled)
    return (tuple(sections[0]),)  # nothing but white space, or nothing
