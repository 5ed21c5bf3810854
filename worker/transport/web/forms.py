"""Multipart forms with uploaded images: read no further than allowed, and their texts as JSON values.

Names with brackets are parts of objects and lists, as PHP, Rails and OpenAI's client write them: `output[format]`,
`loras[][model]`, `image[0]`.
"""

import re
import sys
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import JsonValue
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from worker.core.errors import InvalidImage, InvalidRequest
from worker.core.json_text import parse_bounded
from worker.media.images import to_base64
from worker.transport.web.context import JSON_LIMITS, media_type
from worker.transport.web.incoming import Incoming

MAX_FILES = 17  # sixteen images and a mask
MAX_TEXTS = 100
MAX_TEXT_BYTES = 2**20
_MAX_BRACKETS = 6
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


@dataclass(frozen=True, slots=True)
class Form:
    """A form's texts by name, in objects and lists where names have brackets; its files in order, and their types."""

    texts: dict[str, JsonValue]
    files: dict[str, list[bytes]] = field(repr=False)
    types: dict[str, list[str]] = field(default_factory=dict)

    def images(self, *names: str) -> list[JsonValue]:
        """Return the files of these names as base64; a text under such a name may be base64 or a URL itself.

        Raises InvalidImage for a file of no bytes.
        """
        for name in names:
            if b"" in self.files.get(name, ()):
                raise InvalidImage(f"{name} is an empty file; send the image.", field=name)
        files: list[JsonValue] = [to_base64(data) for name in names for data in self.files.get(name, [])]
        texts = [self.texts[name] for name in names if self.texts.get(name)]
        return files + [text for entry in texts for text in (entry if isinstance(entry, list) else [entry])]

    def check_files(self, names: Collection[str], also: Collection[str] = ()) -> None:
        """Raise InvalidRequest for a file of any other name; `also` are taken and not told of."""
        for name in self.files:
            if name not in (*names, *also):
                raise InvalidRequest(f"{name[:80]} is no file of this form; it takes {', '.join(names)}.", field="body")

    def values(self, but: Collection[str]) -> dict[str, JsonValue]:
        """Return all texts except those named in `but`: without empty ones, numbers and the like as JSON values."""
        return {name: _values(name, value) for name, value in self.texts.items() if name not in but and value != ""}


async def read_form(request: Request, incoming: Incoming) -> Form:
    """Read the form of `request`. Raises HTTPException 415, InvalidRequest, and what `Incoming.stream` does."""
    if media_type(request) != "multipart/form-data":
        raise HTTPException(415, "The body must be a form; send it with Content-Type: multipart/form-data.")
    async with aclosing(incoming.stream(request)) as chunks:
        parser = MultiPartParser(
            request.headers, chunks, max_files=MAX_FILES, max_fields=MAX_TEXTS, max_part_size=MAX_TEXT_BYTES
        )
        try:
            parts = await parser.parse()
        except MultiPartException as error:
            raise InvalidRequest(f"The form cannot be read: {error.message}", field="body") from None
        try:
            return await _read_parts(parts)
        finally:
            await parts.close()


async def _read_parts(parts: FormData) -> Form:
    texts: dict[str, JsonValue] = {}
    files: dict[str, list[tuple[int, bytes, str]]] = {}
    for name, value in parts.multi_items():
        path = _path(name)
        if not isinstance(value, UploadFile):
            texts = _with(texts, path, value if value.strip() else "", name)
        elif not value.filename and not value.size:
            continue  # a browser's field in which no file was chosen
        elif (index := _index(path)) is not None:
            kind = (value.content_type or "").partition(";")[0].strip().lower()
            files.setdefault(path[0], []).append((index, await value.read(), kind))
        else:  # an image inside an object: controlnets[0][image]
            texts = _with(texts, path, to_base64(await value.read()), name)
    ordered = {name: sorted(found, key=lambda file: file[0]) for name, found in files.items()}
    return Form(
        {name: _with_lists(value) for name, value in texts.items()},
        {name: [data for _, data, _ in found] for name, found in ordered.items()},
        {name: [kind for _, _, kind in found] for name, found in ordered.items()},
    )


def _index(path: list[str]) -> int | None:
    """Return the place of a file in its list: that of its brackets, else behind those; None inside an object."""
    if len(path) == 1 or path[1:] == [""]:
        return sys.maxsize
    return int(path[1]) if len(path) == 2 and path[1].isdecimal() else None


def _path(name: str) -> list[str]:
    """Return the parts of a name: `loras[][model]` has `loras`, the empty one of a list's next entry, and `model`."""
    match = _NAME.fullmatch(name)
    brackets = re.findall(r"\[([^\[\]]*)\]", match[2]) if match else []
    if match is None or len(brackets) > _MAX_BRACKETS or any(len(part) > 4 for part in brackets if part.isdecimal()):
        return [name]
    return [match[1], *brackets]


def _with(node: Any, path: list[str], text: str, name: str) -> Any:
    """Return `node` with `text` at `path`. Raises InvalidRequest where `name` contradicts an earlier one."""
    if not path:
        if isinstance(node, dict | list):
            raise InvalidRequest(
                f"{name[:80]} was sent as a text and as more than one; send one of them.", field="body"
            )
        return text
    part, rest = path[0], path[1:]
    if node is not None and not isinstance(node, dict if part else list):
        raise InvalidRequest(f"{name[:80]} contradicts an earlier part of the form; send one of them.", field="body")
    if part:
        branch: Any = node or {}
        return {**branch, part: _with(branch.get(part), rest, text, name)}
    entries: Any = node or []
    if rest and entries and not _holds(entries[-1], rest):  # another part of the entry that was begun
        return [*entries[:-1], _with(entries[-1], rest, text, name)]
    return [*entries, _with(None, rest, text, name)]


def _holds(node: JsonValue, path: list[str]) -> bool:
    """True if there is something at `path` already; another entry of a list is always something new."""
    if not path:
        return node is not None
    return isinstance(node, dict) and _holds(node.get(path[0]), path[1:])


def _with_lists(node: JsonValue) -> JsonValue:
    """Return `node` with a list in place of each object that has numbers for names."""
    if isinstance(node, list):
        return [_with_lists(item) for item in node]
    if not isinstance(node, dict):
        return node
    parts = {name: _with_lists(item) for name, item in node.items()}
    if all(name.isdecimal() for name in parts):
        return [parts[name] for name in sorted(parts, key=int)]
    return parts


# Fields that stay texts though they may look like numbers, beside all prompts.
_TEXTS = ("model", "scheduler", "user", "name", "weight_name", "token", "image", "mask")


def _values(name: str, value: JsonValue) -> JsonValue:
    """Return a text, or the texts in a list or object, as JSON values."""
    if isinstance(value, list):
        return [_values(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _values(key, item) for key, item in value.items()}
    if not isinstance(value, str) or name in _TEXTS or "prompt" in name:
        return value
    try:
        plain: JsonValue = parse_bounded(value, JSON_LIMITS)
    except ValueError:
        return value
    return plain
