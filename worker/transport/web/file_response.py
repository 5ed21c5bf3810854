"""A generated image as the file itself: the format that a caller accepts, and the answer that holds it."""

from collections.abc import AsyncGenerator, Mapping

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.answer import Answer
from worker.core.errors import ParameterOutOfRange
from worker.core.request import IMAGE_FORMATS, Format, format_named
from worker.core.result import AnswerFile
from worker.wire.request import ALIASES

_PIECE_BYTES = 256 * 1024


def accepted_format(request: Request) -> Format | None:
    """Return the image format that all Accept headers together like best, of equals the first; None if any will do.

    Hugging Face's client sends its own `image/png` behind the one that its caller set.
    """
    best: tuple[float, Format | None] = (0.0, None)
    for entry in ",".join(request.headers.getlist("accept")).split(","):
        kind, *options = (text.strip().lower() for text in entry.split(";"))
        quality = next((_quality(option[2:]) for option in options if option.startswith("q=")), 1.0)
        name = next((name for name in IMAGE_FORMATS if kind.startswith("image/") and format_named(kind) == name), None)
        if name is not None and quality > best[0]:
            best = (quality, name)
    return best[1]


def output_as(format_: Format | None, sent: JsonValue = None) -> dict[str, JsonValue]:
    """Return the `output` of a request for a file: of this format, and not uploaded unless it is too large."""
    if sent is not None and not isinstance(sent, dict):
        raise ParameterOutOfRange("output must be an object.", field="output")
    chosen: dict[str, JsonValue] = {"format": format_} if format_ else {}
    return {**(sent or {}), **chosen, "delivery": "base64"}


def check_single(fields: Mapping[str, JsonValue]) -> None:
    """Refuse more than one image for a door whose answer is one file: the others would be paid for and lost."""
    for name, value in fields.items():
        number = number_in(value) if ALIASES.get(name, name) == "num_images" else None
        if number is not None and number > 1:
            text = (
                f"{name} may be 1 at most here, where the answer is the image itself; send several requests, or /run."
            )
            raise ParameterOutOfRange(text, field=name)


def encode_file(answer: Answer) -> Response:
    """Return the first image or video of an answer, with its seed, the way in which a mask was read, and its warnings.

    It is a redirect if it was uploaded.
    """
    headers = {"X-Seed": str(answer.seeds[0])}
    if answer.mask is not None:
        headers["X-Mask"] = answer.mask
    if answer.warnings:
        headers["X-Warnings"] = header_text(" ".join(answer.warnings))
    first = answer.files[0]
    if first.url is not None:
        return RedirectResponse(first.url, 303, headers)
    return send_file(first, headers)


def send_file(file: AnswerFile, headers: Mapping[str, str] | None = None) -> Response:
    """Return the bytes of `file`, sent in pieces: a slow reader is waited for, and no second copy is queued for it."""
    data = file.data

    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), _PIECE_BYTES):
            yield data[start : start + _PIECE_BYTES]

    known = {**(headers or {}), "Content-Length": str(len(data))}
    return StreamingResponse(pieces(), headers=known, media_type=file.media_type)


def header_text(text: str) -> str:
    """Return `text` with what a header cannot hold replaced, and what would make it too long cut off."""
    latin = text[:1_000].encode("latin-1", "replace").decode("latin-1")
    return "".join(char if char.isprintable() else " " for char in latin)


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
