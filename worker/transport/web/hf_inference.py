"""Hugging Face's inference API, as its InferenceClient calls it: words or an image in, an image out."""

import re
from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, JsonValue
from starlette.exceptions import HTTPException

from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.media.images import to_base64
from worker.transport.web import openapi
from worker.transport.web.auth import caller_of
from worker.transport.web.context import ServerContext, is_json, parse_json
from worker.transport.web.door import Door
from worker.transport.web.errors import Failure, answered_by, json_response
from worker.transport.web.file_response import accepted_format, check_single, encode_file, header_text, output_as
from worker.wire.introspection import encode_model
from worker.wire.media_objects import unwrapped
from worker.wire.request import said

# The API has one field for words and for images. An image begins as PNG, JPEG, WebP, GIF or BMP do in base64 of either
# alphabet, or as a URL; or it is long base64 of another format.
_IMAGE = re.compile(
    r"iVBORw0KGgo|/9j/|_9j_|UklGR|R0lGOD|Qk[0-9A-Za-z+/_-]{20}|[A-Za-z0-9+/_-]{100,}=*$"
    r"|data(?::|%3a)[^\s,]*(?:,|%2c)|blob:http|[a-z][a-z0-9+.-]*://",
    re.IGNORECASE,
)
_FIELDS = ("inputs", "parameters", "model_id", "options")  # options are Hugging Face's own business
_BODY = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "type": "string",
            "description": "The prompt; or an image as base64, data: URI or URL, with `parameters.prompt`.",
        },
        "model_id": {"type": ["string", "null"], "maxLength": 512},
        "parameters": {
            "type": ["object", "null"],
            "description": "Any field of a generation; `target_size: {width, height}`, and `model_id`.",
        },
        "options": {"type": ["object", "null"], "description": "Taken, and without effect here."},
    },
}
_TEXT = (
    "The body is JSON, or the bytes of an image. The model is `model_id` of the body, else of the query, of the path, "
    "the header `X-Model-Id`, or `parameters.model_id`: one of them is needed. The answer is the image itself, in the "
    "format of `Accept`: one image, so `num_images` is 1 at most."
)


class HubError(openapi.Error):
    """Any failure; the sentence and the code are in `X-Error-Message` and `X-Error-Code` too."""

    supported_models: list[str] | None = None


class DiffusersModels(BaseModel):
    """What can be generated with."""

    models: list[dict[str, JsonValue]]


def routes(context: ServerContext) -> Door:
    """Return the routes of POST /diffusers/generate, of its other paths, and of GET /diffusers/models."""

    router = Door(tags=["Hugging Face's inference API"], route_class=answered_by(_encode_failure))
    failures = openapi.refusals(*openapi.ASKING, 409, shape=HubError)
    responses = openapi.files("image/png", "image/jpeg", "image/webp", "video/mp4") | failures
    body = openapi.takes(
        _BODY,
        words={"inputs": "a red apple", "parameters": {"seed": 7, "num_inference_steps": 16}},
        image={"inputs": "iVBORw0KGgo…", "parameters": {"prompt": "a green apple", "strength": 0.6}},
    )
    raw = {"schema": {"type": "string", "format": "binary"}}
    for kind in ("image/*", "application/octet-stream"):
        body["requestBody"]["content"][kind] = raw

    async def respond(request: Request, model: str | None) -> Response:
        fields = _decode(request, await context.incoming.read(request), model)
        if "model" not in fields:
            raise _model_required(context, request)
        return encode_file(await context.generate(request, fields))

    @router.post(
        "/diffusers/generate",
        summary="Words or an image to an image",
        description=_TEXT,
        responses=responses,
        openapi_extra=body,
    )
    async def generate(request: Request) -> Response:
        return await respond(request, None)

    @router.post(
        "/diffusers/generate/{id:path}",
        summary="The same, with a model",
        responses=responses,
        openapi_extra=body,
    )
    @router.post(
        "/models/{id:path}",
        summary="The same, as Hugging Face's own paths are",
        responses=responses,
        openapi_extra=body,
    )
    async def generate_with(id: str, request: Request) -> Response:
        if request.scope["route"].path.startswith("/models/") and id.endswith("/schema"):
            raise HTTPException(405, headers={"Allow": "GET"})  # that path is another door's, and is only read
        return await respond(request, id)

    @router.get(
        "/diffusers/models",
        summary="What can be generated with",
        responses=openapi.answers(DiffusersModels, 401, 500, shape=HubError),
    )
    async def models(request: Request) -> Response:
        entries: list[JsonValue] = [
            {"model_id": model.id, **encode_model(model)} for model in await context.models(request) if model.served
        ]
        return json_response({"models": entries})

    return router


def _model_required(context: ServerContext, request: Request) -> InvalidRequest:
    supported = [model.id for model in context.operations.served_models(caller_of(request).name)]
    return InvalidRequest(
        "model_id is required: name a model in the body, the query, the path or X-Model-Id.",
        field="model_id",
        details={"supported_models": supported},
    )


def _encode_failure(failure: Failure) -> Response:
    body = dict(failure.body)
    sentence = failure.message
    if models := failure.supported_models:
        sentence += f" There are {', '.join(models)}."
        body |= {"error": sentence, "supported_models": [*models]}
    headers = {**failure.headers, "X-Error-Message": header_text(sentence), "X-Error-Code": failure.code}
    return json_response(body, failure.status, headers)


def _decode(request: Request, body: bytes, model_of_path: str | None) -> dict[str, JsonValue]:
    """Read a body of either kind as the fields of a generation. Raises InvalidRequest and its kin."""
    # curl calls whatever it sends a form; and no image begins so.
    is_object = is_json(request) or body.lstrip()[:1] == b"{"
    content = _object(body) if is_object else _image(request, body)
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ParameterOutOfRange("parameters must be an object.", field="parameters")
    fields = said(parameters)
    check_single(fields)
    query, header = request.query_params.get("model_id"), request.headers.get("x-model-id")
    of_parameters = fields.pop("model_id", None)
    if model := content.get("model_id") or query or model_of_path or header or of_parameters:
        fields["model"] = model
    size = fields.pop("target_size", {})
    if size != {}:
        fields |= _size(size)
    inputs = unwrapped("image", content.get("inputs"))
    if not isinstance(inputs, str):
        raise InvalidRequest("inputs must be a text: the prompt, or an image as base64.", field="inputs")
    if not is_object or fields.get("prompt") or _IMAGE.match(inputs.lstrip()):
        fields = {"prompt": "", **fields, "image": inputs}  # that client may leave the prompt out
    else:
        fields["prompt"] = inputs
    return fields | {"output": output_as(accepted_format(request), fields.get("output"))}


def _object(body: bytes) -> Mapping[str, JsonValue]:
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest('The body must be {"inputs": "…", "parameters": {…}}.', field="body")
    for name in value:
        if name not in _FIELDS:
            raise UnknownParameter(f"{name[:80]} is not taken beside inputs; put it into parameters.", field=name[:80])
    return value


def _image(request: Request, body: bytes) -> Mapping[str, JsonValue]:
    if not body:
        raise InvalidRequest("The body is empty; send JSON, or the bytes of an image.", field="body")
    if body.startswith(b"inputs="):
        raise InvalidRequest('The body is a form; send JSON: {"inputs": "…"}.', field="body")
    prompt = request.query_params.get("prompt", "")
    return {"inputs": to_base64(body), "parameters": {"prompt": prompt}}


def _size(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict) or not {"width", "height"} <= value.keys() or len(value) != 2:
        raise ParameterOutOfRange("target_size must be {width, height}.", field="target_size")
    return value
