"""The inputs of recorded requests: images, long texts and saved ids stand in them as short words."""

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

_IMAGE = re.compile(r"@(data:)?(png|jpeg|webp|gif) (\d+)x(\d+) (\w+)(?: (\w+))?")
_LONG = re.compile(r"@long (\d+)")


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """Put in what `value` names.

    `@png 64x48 red` is an image as base64, `@png 64x48 red RGBA` one of that mode, `@gif 64x64 red 5` five frames of
    it, `@data:png 64x64 red` a data URI, `@long 9000` so many letters, and `{job}` what was saved under that name.
    """
    if isinstance(value, dict):
        return {key: filled(part, known) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, known) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith("\0"):  # a number as it is written in the file
        return float(value[1:])
    if image := _IMAGE.fullmatch(value):
        encoded = base64.b64encode(file(value)).decode()
        return f"data:image/{image[2]};base64,{encoded}" if image[1] else encoded
    if long := _LONG.fullmatch(value):
        return "apple " * (int(long[1]) // 6)
    for name, found in known.items():
        value = value.replace(f"{{{name}}}", found)
    return value


def file(words: str) -> bytes:
    """Return the bytes of an image that is described so; other words are their own bytes."""
    image = _IMAGE.fullmatch(words)
    if image is None:
        return words.encode()
    _, kind, width, height, colour, more = image.groups()
    count = int(more) if more and more.isdecimal() else 1
    mode = more if more and not more.isdecimal() else "RGB"
    first = Image.new(mode, (int(width), int(height)), 0 if mode == "RGBA" else colour)
    rest = [Image.new("RGB", first.size, (40 * index, 90, 10)) for index in range(1, count)]
    out = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 125} if rest else {}
    first.save(out, kind, **options)
    return out.getvalue()
