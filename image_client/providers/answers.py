"""What all providers' answers have in common: JSON, base64, and which refusal a status is."""

import base64
import binascii
import json
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pydantic import JsonValue

from image_client.errors import (
    AuthenticationFailed,
    GenerationFailed,
    ImageClientError,
    PaymentRequired,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    UnknownOutcome,
)
from image_client.providers.provider import File, HttpAnswer, Link

MAX_MESSAGE_CHARS = 500
_MESSAGE_KEYS = ("message", "detail", "error", "errors", "title", "name", "msg")
_DATA_URI = re.compile(r"data:[\w/+.-]*(?:;[\w=.-]+)*,")


def json_object(answer: HttpAnswer) -> dict[str, JsonValue]:
    """Return the answer's JSON object; raises UnknownOutcome where it is none, since what it says cannot be known."""
    try:
        value = json.loads(answer.body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnknownOutcome(
            "The answer is not a JSON object, so nobody knows what became of it.", status=answer.status
        )
    return value


def text_of(value: JsonValue) -> str | None:
    """Return `value` where it is a text that says something."""
    return value if isinstance(value, str) and value else None


def whole_number(value: JsonValue) -> int | None:
    """Return `value` where it is a whole number, also as a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def sentence(value: JsonValue) -> str | None:
    """Return the provider's own words, wherever in its answer they stand."""
    if isinstance(value, str):
        return value.strip()[:MAX_MESSAGE_CHARS] or None
    if isinstance(value, list):
        said = [words for item in value if (words := sentence(item))]
        return "; ".join(said)[:MAX_MESSAGE_CHARS] or None
    if isinstance(value, dict):
        return next((words for key in _MESSAGE_KEYS if key in value and (words := sentence(value[key]))), None)
    return None


def words_of(answer: HttpAnswer) -> str:
    """Return what an answer says in words, in one line, or its status."""
    try:
        said = sentence(json.loads(answer.body))
    except ValueError:
        media_type = answer.headers.get("content-type", "")
        said = (
            answer.body[:MAX_MESSAGE_CHARS].decode("utf-8", "replace") if media_type.startswith("text/plain") else None
        )
    return " ".join(said.split()) if said else f"status {answer.status}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds to wait, as Retry-After (seconds or a date) or retry-after-ms says; None without one."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", milliseconds := headers.get("retry-after-ms", "")):
            return float(milliseconds) / 1000
        value = headers.get("retry-after", "").strip()
        if not value:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def refusal(answer: HttpAnswer) -> ImageClientError:
    """Return the error that an answer other than 2xx is, by its status.

    500, 502, 504 and their like leave open whether the job ran. 503 and 429 say that it did not.
    """
    status, said = answer.status, words_of(answer)
    if status in (401, 403):
        return AuthenticationFailed(f"The provider does not take this token: {said}", status=status)
    if status == 402:
        return PaymentRequired(f"The account has no credit: {said}", status=status)
    if status == 429:
        wait = retry_after(answer.headers)
        return RateLimited(f"Too many requests: {said}", retry_after=wait, status=status)
    if status == 503:
        wait = retry_after(answer.headers)
        return ProviderUnavailable(f"The provider is not ready: {said}", retry_after=wait, status=status)
    if status >= 500 or status == 408:
        return UnknownOutcome(f"The provider failed and does not say whether the job ran: {said}", status=status)
    if 300 <= status < 400:
        return RequestRefused("The address redirects, which a job does not follow: check base_url.", status=status)
    return RequestRefused(f"The provider refuses the request: {said}", status=status)


def require_success(answer: HttpAnswer) -> None:
    """Raise the refusal of an answer that is not 2xx."""
    if not 200 <= answer.status < 300:
        raise refusal(answer)


def file_or_link(value: JsonValue, seed: int | None = None) -> File | Link:
    """Return the image that a text stands for: an https URL, a data: URI, or base64. Raises GenerationFailed."""
    if not isinstance(value, str) or not value:
        raise GenerationFailed("The job is done and its answer holds no image.")
    if value.startswith(("http://", "https://")):
        return Link(value, seed)
    prefix = _DATA_URI.match(value)
    try:
        return File(base64.b64decode(value[prefix.end() if prefix else 0 :], validate=True), seed)
    except (ValueError, binascii.Error):
        raise GenerationFailed("The job is done and its image is not base64.") from None


def base64_text(data: bytes) -> str:
    """Return `data` as base64."""
    return base64.b64encode(data).decode()


def data_uri(data: bytes) -> str:
    """Return an encoded image as a data: URI."""
    return f"data:{media_type_of(data) or 'application/octet-stream'};base64,{base64_text(data)}"


def media_type_of(data: bytes) -> str | None:
    """Return the media type of an image file by its first bytes; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return None


def is_whole(data: bytes) -> bool:
    """Tell whether an image file has its end: one that was cut off on its way does not."""
    kind = media_type_of(data)
    if kind == "image/png":
        return b"IEND" in data[-64:]
    if kind == "image/jpeg":
        return b"\xff\xd9" in data[-1024:]
    if kind == "image/webp":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return kind is not None


def seeds_of(first: int | None, count: int) -> list[int | None]:
    """Return the seeds of `count` images that were asked for with one: each next image has the next."""
    return [None if first is None else first + index for index in range(count)]


def seed_of(request_id: str) -> int:
    """Return the seed of a request that names none: the same for the same id, so that sending it again is the same."""
    return random.Random(request_id).randrange(2**31)  # noqa: S311
