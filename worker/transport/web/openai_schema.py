"""OpenAI's JSON for images: requests, answers, events on the way, refusals."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue

from worker.catalog.interface.values import number_in, truth_in
from worker.core.answer import Answer
from worker.core.errors import ParameterOutOfRange
from worker.core.image import Raster
from worker.core.request import IMAGE_FORMATS, format_named
from worker.core.result import AnswerFile
from worker.transport.progress import encode_preview, preview_size
from worker.transport.web.errors import Failure, json_response
from worker.transport.web.openapi import Documented
from worker.wire.request import said
from worker.wire.result import encode_file

MAX_PARTIAL_IMAGES = 3
Kind = Literal["image_generation", "image_edit"]

_SIZE = re.compile(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*", re.ASCII)
# Of OpenAI's own service. Fields that change nothing in an image are left out in silence, the others with a warning.
_SILENT = ("user", "safety_identifier", "moderation")
_WITHOUT_EFFECT = ("quality", "style", "input_fidelity", "background")
_USUAL = (None, "auto", "standard", "opaque")
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PARAMS = {"num_images": "n", "width": "size", "height": "size"}
# No tokens are counted here, and its clients read the numbers without asking whether they are there.
_USAGE: Mapping[str, JsonValue] = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}

SCHEMA: dict[str, Any] = {
    "prompt": {"type": "string", "maxLength": 8_000},
    "model": {"type": ["string", "null"], "maxLength": 512, "description": "An id or alias of `GET /v1/models`."},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 64},
    "size": {"type": ["string", "null"], "description": "`WIDTHxHEIGHT`, or `auto`: the model's own size."},
    "response_format": {"enum": ["b64_json", "url", None]},
    "output_format": {"enum": [*IMAGE_FORMATS, None]},
    "output_compression": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
    "stream": {"type": ["boolean", "null"]},
    "partial_images": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_PARTIAL_IMAGES},
    **{name: {"type": ["string", "null"], "description": "Taken, and without effect here."}
       for name in (*_WITHOUT_EFFECT, *_SILENT)},
}  # fmt: skip


class Problem(Documented):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None


class OpenAIError(BaseModel):
    """Any failure."""

    error: Problem


class Image(BaseModel):
    """An image: itself, or where it is."""

    b64_json: str | None = None
    url: str | None = None


class OpenAIImages(Documented):
    """What was drawn."""

    created: int
    data: list[Image]
    size: str
    output_format: str
    background: Literal["opaque"]
    usage: dict[str, JsonValue]
    model: str
    seeds: list[int]
    warnings: list[str] = Field(description="What was asked for and has no effect, among other things.")


class OpenAIModel(Documented):
    """A model that can be named."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[OpenAIModel]


@dataclass(frozen=True, slots=True)
class ImagesRequest:
    """A request in our own names (`fields`), and the options of its answer."""

    fields: dict[str, JsonValue]
    as_url: bool
    stream: bool
    partial_images: int
    warnings: tuple[str, ...]


def decode(sent: Mapping[str, JsonValue]) -> ImagesRequest:
    """Take a request apart. Fields that OpenAI does not know go on as they are. Raises ParameterOutOfRange."""
    fields = said(sent)
    ignored = [name for name in _WITHOUT_EFFECT if fields.pop(name, None) not in _USUAL]
    for name in _SILENT:
        fields.pop(name, None)
    size = fields.pop("size", "auto")
    if size != "auto":
        fields |= _decode_size(size)
    # OpenAI's own default depended on the model: programs that ask for one of those read an address.
    usual = "url" if str(fields.get("model")).lower().startswith("dall-e-") else "b64_json"
    response_format = fields.pop("response_format", usual)
    if response_format not in ("b64_json", "url"):
        raise ParameterOutOfRange("response_format must be b64_json or url.", field="response_format")
    stream = truth_in(fields.pop("stream", False))
    if stream is None:
        raise ParameterOutOfRange("stream must be true or false.", field="stream")
    partial_images = _whole(fields.pop("partial_images", 0), "partial_images", MAX_PARTIAL_IMAGES)
    fields["output"] = _decode_output(fields)
    if stream and partial_images:
        fields["previews"] = True
    warnings = tuple(f"{name} has no effect on this worker." for name in ignored)
    return ImagesRequest(fields, response_format == "url" and not stream, stream, partial_images, warnings)


def encode_images(images_request: ImagesRequest, answer: Answer, content: str | None) -> dict[str, JsonValue]:
    """Write the answer to a finished request; `content` is the URL of its images, if URLs were requested."""
    data: list[JsonValue] = [
        {"url": f"{content}?variant={index}"} if content else _datum(file) for index, file in enumerate(answer.files)
    ]
    return {
        "created": int(time.time()),
        "data": data,
        **_about(answer),
        "usage": dict(_USAGE),
        "model": answer.model,
        "seeds": [*answer.seeds],
        "warnings": [*images_request.warnings, *answer.warnings],
    }


def encode_partial(kind: Kind, preview: Raster | AnswerFile, index: int) -> dict[str, JsonValue]:
    """Write an event with an image as it is so far."""
    return {
        "type": f"{kind}.partial_image",
        "partial_image_index": index,
        "b64_json": encode_preview(preview),
        "created_at": int(time.time()),
        "size": "{}x{}".format(*preview_size(preview)),
        "output_format": "jpeg",
        "background": "opaque",
        "quality": "auto",
    }


def encode_completed(kind: Kind, answer: Answer, file: AnswerFile) -> dict[str, JsonValue]:
    """Write an event with one of the images."""
    return {
        "type": f"{kind}.completed",
        "created_at": int(time.time()),
        "quality": "auto",
        "usage": dict(_USAGE),
        **_about(answer),
        **_datum(file),
    }


def encode_problem(failure: Failure) -> dict[str, JsonValue]:
    """Write a failure's body."""
    field = failure.body.get("field")
    problem: dict[str, JsonValue] = {
        "message": failure.message,
        "type": TYPES.get(failure.status, "server_error" if failure.status >= 500 else "invalid_request_error"),
        "code": failure.code,
        "param": _PARAMS.get(str(field), field),
        "request_id": failure.body["request_id"],
    }
    if models := failure.supported_models:
        problem["supported_models"] = [*models]
    return {"error": problem}


def encode_failure(failure: Failure) -> Response:
    """Return a failure's answer. Its clients try again on their own unless a header forbids it."""
    headers = {**failure.headers, "x-should-retry": "true" if failure.body["retryable"] else "false"}
    return json_response(encode_problem(failure), failure.status, headers)


def encode_model(id: str, created: int) -> dict[str, JsonValue]:
    """Write a model of the registry."""
    owner, slash, _ = id.partition("/")
    return {"id": id, "object": "model", "created": created, "owned_by": owner if slash else "operator"}


def is_uploaded(answer: Answer) -> bool:
    """True if an answer holds the URLs of its files."""
    return answer.files[0].url is not None


def _about(answer: Answer) -> dict[str, JsonValue]:
    return {
        "size": f"{answer.width}x{answer.height}",
        "output_format": answer.format,
        "background": "opaque",
    }


def _datum(file: AnswerFile) -> dict[str, JsonValue]:
    return {"b64_json" if file.url is None else "url": encode_file(file)}


def _decode_size(size: JsonValue) -> dict[str, JsonValue]:
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise ParameterOutOfRange('size must be WIDTHxHEIGHT in pixels, such as "1024x768", or "auto".', field="size")
    return {"width": int(match[1]), "height": int(match[2])}


def _decode_output(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    output = fields.pop("output", None) or {}
    if not isinstance(output, dict):
        raise ParameterOutOfRange("output must be an object.", field="output")
    chosen: dict[str, JsonValue] = {}
    if (sent := fields.pop("output_format", None)) is not None:
        format_ = next((name for name in IMAGE_FORMATS if name == format_named(sent)), None)
        if format_ is None:
            raise ParameterOutOfRange(f"output_format must be {', '.join(IMAGE_FORMATS)}.", field="output_format")
        chosen["format"] = format_
    if (quality := fields.pop("output_compression", None)) is not None:
        chosen["quality"] = max(1, _whole(quality, "output_compression", 100))
    return {**output, **chosen, "delivery": "base64"}


def _whole(value: JsonValue, name: str, limit: int) -> int:
    number = number_in(value)
    if number is None or not 0 <= number <= limit or number != int(number):
        raise ParameterOutOfRange(f"{name} must be an integer between 0 and {limit}.", field=name)
    return int(number)
