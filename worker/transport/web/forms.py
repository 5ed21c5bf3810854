"""Multipart forms with uploaded images: read no further than allowed, and their texts as JSON values."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from fastapi import Request
from pydantic import JsonValue
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from worker.core.errors import InvalidRequest
from worker.media.images import to_base64
from worker.transport.web.context import bounded, media_type

MAX_FILES = 17  # sixteen images and a mask
MAX_TEXTS = 100
MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Form:
    """A form's texts by name, of which the last one counts, and its files by name, in order, and their media types."""

    texts: dict[str, str]
    files: dict[str, list[bytes]]
    types: dict[str, list[str]] = field(default_factory=dict)

    def images(self, *names: str) -> list[JsonValue]:
        """Return the files of these names as base64; a text under such a name may be base64 or a URL itself."""
        files: list[JsonValue] = [to_base64(data) for name in names for data in self.files.get(name, [])]
        return files + [self.texts[name] for name in names if self.texts.get(name)]

    def check_files(self, names: Collection[str]) -> None:
        """Raise InvalidRequest for a file of any other name."""
        for name in self.files:
            if name not in names:
                raise InvalidRequest(f"{name[:80]} is no file of this form; it takes {', '.join(names)}.", field="body")

    def values(self, but: Collection[str]) -> dict[str, JsonValue]:
        """Return all texts except those named in `but`: without empty ones, numbers and the like as JSON values."""
        return {name: _value(name, text) for name, text in self.texts.items() if name not in but and text.strip()}


async def read_form(request: Request, max_bytes: int) -> Form:
    """Read the form of `request`. Raises HTTPException 413 and 415, InvalidRequest for an invalid form."""
    if media_type(request) != "multipart/form-data":
        raise HTTPException(415, "The body must be a form; send it with Content-Type: multipart/form-data.")
    parser = MultiPartParser(
        request.headers,
        bounded(request, max_bytes),
        max_files=MAX_FILES,
        max_fields=MAX_TEXTS,
        max_part_size=MAX_TEXT_BYTES,
    )
    try:
        parts = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}", field="body") from None
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    types: dict[str, list[str]] = {}
    try:
        for name, value in parts.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
                types.setdefault(name, []).append((value.content_type or "").partition(";")[0].strip().lower())
            else:
                texts[name] = value
    finally:
        await parts.close()
    return Form(texts, files, types)


# Fields that stay texts though they may look like numbers.
_TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "model", "scheduler", "user")


def _value(name: str, text: str) -> JsonValue:
    if name in _TEXTS:
        return text
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
