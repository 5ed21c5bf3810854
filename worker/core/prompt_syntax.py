"""Marks of other programs in a prompt: tags that call adapters up, and ways to mix prompts. Pure text: no tokenizer.

| written | elsewhere | here |
|---|---|---|
| `<lora:name:0.8>`, `<lyco:name:0.8>`, `<hypernet:name:0.8>` | an adapter, its weight | read and taken out |
| `a AND b` | two prompts, composed | read by Stable Diffusion 1, 2 and XL |
| `[a:b:0.5]`, `[a:0.5]`, `[a::0.5]` | another prompt after some of the steps | as AND |
| `[a\\|b]` | another prompt at each step | as AND |
| `{a\\|b}`, `__name__` | one of several, by chance | not read |
| `embedding:name` | a textual inversion (ComfyUI) | not read |

Weights in brackets are read by `prompt.py`. A mark with a backslash before its bracket is text.
"""

import re
from dataclasses import dataclass
from typing import Literal

from worker.core.prompt_mixing import is_mixed

TagKind = Literal["lora", "hypernet"]
_TAG = re.compile(r"[ \t]*<(?P<kind>lora|lyco|hypernet):(?P<name>[^<>:]+)(?P<rest>(?::[^<>:]*)*)>", re.IGNORECASE)
_NUMBER = r"\d*\.?\d+"
MIXING = ("AND", "[from:to:when]", "[a|b]")  # marks that some models read (`prompt_mixing.py`)
# The marks that few models or none read, each as a caller knows it, and what to do instead.
_UNREAD: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("AND", re.compile(r"\S\s*\bAND\b\s*\S"), "describe everything in one sentence"),
    ("[from:to:when]", re.compile(rf"(?<!\\)\[[^\[\]|<>]*:\s*{_NUMBER}\s*\]"), "send one job for each prompt"),
    ("[a|b]", re.compile(r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]"), "send one job for each prompt"),
    ("{a|b}", re.compile(r"\{[^{}\"]*\|[^{}\"]*\}"), "choose one before you send it"),
    ("__wildcard__", re.compile(r"(?<![\w])__[\w/*.-]*[^\W_][\w/*.-]*?__(?!\w)"), "choose a word before you send it"),
    ("embedding:name", re.compile(r"(?<!\w)embedding:[\w.-]+", re.IGNORECASE), "name the file in embeddings"),
)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag that calls an adapter up: its text, the adapter's name, and what stands behind the name."""

    text: str
    kind: TagKind
    name: str
    settings: tuple[str, ...]  # the weight first; then the text encoder's apart from it, or other programs' options


def take_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """Return `prompt` without its tags, and the tags."""
    tags = tuple(
        Tag(
            match.group().strip(),
            "hypernet" if match["kind"].lower() == "hypernet" else "lora",
            match["name"].strip(),
            tuple(part.strip() for part in match["rest"].split(":")[1:]),
        )
        for match in _TAG.finditer(prompt)
    )
    return (_TAG.sub("", prompt).strip() if tags else prompt), tags


def unread_marks(prompt: str) -> tuple[tuple[str, str], ...]:
    """Return each kind of mark in `prompt` that is no part of the words and is not read, with what to do instead."""
    marks = [(name, instead) for name, pattern, instead in _UNREAD if pattern.search(prompt)]
    if is_mixed(prompt) and not any(name in MIXING for name, _ in marks):  # with other brackets inside
        marks.append(("[from:to:when]", "send one job for each prompt"))
    if _TAG.search(prompt):
        marks.append(("<lora:name:weight>", "name the file in loras"))
    return tuple(marks)
