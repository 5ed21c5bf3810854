"""References in a recipe's fields: `${inputs.NAME}`, `${steps.NAME.image}` and their like, and nothing else.

A field that is one reference and nothing more takes its value, of whatever type. Inside a text a reference stands for
a text or a number. `$${` is a plain `${`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

Part = Literal["image", "images", "video", "frames", "seed"]
PARTS: tuple[Part, ...] = ("image", "images", "video", "frames", "seed")
_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_INPUT = re.compile(r"inputs\.([A-Za-z0-9_-]+)(\.frames)?")
_STEP = re.compile(r"steps\.([A-Za-z0-9_-]+)\.(image|images|video|frames|seed)")
_SHOWN = 64  # characters of a text that is no reference


@dataclass(frozen=True, slots=True)
class InputReference:
    """The value of one of the recipe's inputs; with `frames` each frame of a video by itself."""

    name: str
    frames: bool = False


@dataclass(frozen=True, slots=True)
class StepReference:
    """What an earlier step made: its first image or all of them, its video or each frame of it, or the first seed."""

    step: str
    part: Part


Reference = InputReference | StepReference
Path = tuple[str | int, ...]


class NoReference(ValueError):
    """A text between `${` and `}` that refers to nothing; the message is a clause with the fix."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A reference, and its place below a step's fields. `is_alone` is False inside a longer text."""

    path: Path
    reference: Reference
    is_alone: bool


class Missing:
    """The value of an input that may be left out, and was."""


MISSING = Missing()
Filled = JsonValue | Missing


def parts_of(text: str) -> list[str | Reference]:
    """Split a text into plain text and references. Raises NoReference."""
    parts: list[str | Reference] = []
    at = 0
    for token in _TOKEN.finditer(text):
        parts += [text[at : token.start()]] if token.start() > at else []
        parts.append("${" if token[0] == "$${" else _reference(token[1], text))
        at = token.end()
    return parts + ([text[at:]] if at < len(text) else [])


def mentions(value: JsonValue, path: Path = ()) -> Iterator[Mention]:
    """Yield every reference in `value`, at any depth. Raises NoReference, with the path as its second argument."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from mentions(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from mentions(item, (*path, index))
    elif isinstance(value, str):
        try:
            parts = parts_of(value)
        except NoReference as error:
            raise NoReference(str(error), path) from None
        for part in parts:
            if not isinstance(part, str):
                yield Mention(path, part, is_alone=len(parts) == 1)


def filled(value: JsonValue, value_of: Callable[[Reference], Filled]) -> Filled:
    """Return `value` with the references' values in their places.

    What is missing leaves its field out, and its place in a list; images in a list become items of it.
    """
    if isinstance(value, dict):
        items = {name: filled(item, value_of) for name, item in value.items()}
        return {name: item for name, item in items.items() if not isinstance(item, Missing)}
    if isinstance(value, list):
        listed: list[JsonValue] = []
        for each in value:
            item = filled(each, value_of)
            if isinstance(item, list) and not isinstance(each, list):
                listed += item
            elif not isinstance(item, Missing):
                listed.append(item)
        return listed
    if not isinstance(value, str):
        return value
    parts = parts_of(value)
    if len(parts) == 1 and not isinstance(parts[0], str):
        return value_of(parts[0])
    return "".join(part if isinstance(part, str) else _words(value_of(part)) for part in parts)


def _reference(inside: str | None, text: str) -> Reference:
    if inside is None:
        raise NoReference(f"{text[:_SHOWN]!r} opens ${{ and does not close it; close it, or write $${{ for the text")
    if match := _INPUT.fullmatch(inside.strip()):
        return InputReference(match[1], match[2] is not None)
    if match := _STEP.fullmatch(inside.strip()):
        return StepReference(match[1], next(part for part in PARTS if part == match[2]))
    raise NoReference(
        f"${{{inside[:_SHOWN]}}} refers to nothing; write ${{inputs.NAME}}, or ${{steps.NAME.image}}, .images, .video, "
        ".frames or .seed"
    )


def _words(value: Filled) -> str:
    return "" if value is None or isinstance(value, Missing) else str(value)
