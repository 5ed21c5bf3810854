"""OpenAI's images API: generations, edits, models, and images on the way as server-sent events."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import JsonValue

from worker.core.answer import Answer
from worker.core.errors import InvalidRequest, JobNotFound, ModelNotFound
from worker.core.request import CONTENT_TYPES
from worker.core.result import Progress
from worker.media.decoding import MAX_BYTES
from worker.media.images import inline_bytes, is_url, to_base64
from worker.media.masks import white_where_transparent
from worker.service.jobs.record import JobOptions, JobRecord
from worker.transport.web import openai_schema as words
from worker.transport.web import openapi
from worker.transport.web.context import (
    WAITED_FOR,
    ServerContext,
    generated,
    generation,
    is_json,
    job_id,
    parse_json,
    read_json,
    unless_gone,
)
from worker.transport.web.door import Door
from worker.transport.web.errors import answered_by, failure_of, json_response
from worker.transport.web.events import STREAM_HEADERS, WAITING, paced
from worker.transport.web.file_response import send_file
from worker.transport.web.forms import Form, read_form
from worker.wire.request import ALIASES, said

_IMAGES = "img-"
_TAG = "OpenAI's images API"
_FILES = ("image", "image[]", "mask")
_FORM = {
    **{name: schema for name, schema in words.SCHEMA.items() if name != "stream"},
    "image": {"type": "string", "format": "binary", "description": "The image; of several, each as `image[]`."},
    "image[]": {"type": "array", "items": {"type": "string", "format": "binary"}},
    "mask": {"type": "string", "format": "binary", "description": "Transparent, or white, where it is changed."},
    "stream": {"type": "boolean"},
}
_OBJECT = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": True,
    "properties": {
        **words.SCHEMA,
        "images": {
            "type": "array",
            "items": {"type": "object", "properties": {"image_url": {"type": "string"}}},
            "description": "Each a URL, a data: URI or base64; `image` is one of them.",
        },
        "mask": {"type": ["object", "string", "null"], "description": "The same; transparent where it is changed."},
    },
}
_MORE = " Any other field of a generation is taken too, by its own name."


def routes(context: ServerContext) -> Door:
    """Return the routes that OpenAI's clients call."""
    router = Door(prefix="/v1", tags=[_TAG], route_class=answered_by(words.encode_failure))
    started = int(time.time())

    body = openapi.takes(
        {"type": "object", "required": ["prompt"], "properties": words.SCHEMA, "additionalProperties": True},
        image={"prompt": "a red apple", "size": "256x256", "n": 1, "seed": 7},
    )

    @router.post(
        "/images/generations",
        summary="Words to images",
        responses=_responses("image_generation"),
        openapi_extra=body,
        description=f"With `stream` the images come as server-sent events.{_MORE}",
    )
    async def generations(request: Request) -> Response:
        payload = await read_json(request, context.incoming)
        if not isinstance(payload, dict):
            raise InvalidRequest('The body must be {"prompt": "…"}.', field="body")
        return await _respond(context, request, words.decode(payload), "image_generation")

    @router.post(
        "/images/edits",
        summary="Images and words to images",
        responses=_responses("image_edit"),
        openapi_extra=_edit_body(),
        description=f"A form or JSON. The model is `model`, else EDIT_MODEL, MODEL_ID or the default model.{_MORE}",
    )
    async def edits(request: Request) -> Response:
        fields = await _read_edit(request, context)
        fields.setdefault("model", context.editor())
        return await _respond(context, request, words.decode(fields), "image_edit")

    @router.get(
        "/models",
        summary="What can be named as model",
        responses=openapi.answers(words.ModelList, 401, 500, shape=words.OpenAIError),
    )
    async def models(request: Request) -> Response:
        entries: list[JsonValue] = [
            words.encode_model(model.id, started) for model in await context.models(request) if model.served
        ]
        return json_response({"object": "list", "data": entries})

    @router.get(
        "/models/{id:path}",
        summary="One model",
        responses=openapi.answers(words.OpenAIModel, 401, 404, 500, shape=words.OpenAIError),
    )
    async def model(id: str, request: Request) -> Response:
        for served in await context.models(request):
            if served.served and served.is_named(id):
                return json_response(words.encode_model(served.id, started))
        unknown = ModelNotFound("models.yaml has no such model; GET /v1/models lists them.", field="model")
        return words.encode_failure(replace(failure_of(unknown), status=404))

    return router


def image_routes(context: ServerContext) -> Door:
    """Return the route of images that were requested as URLs, served for as long as answers are kept."""
    router = Door(prefix="/v1", tags=[_TAG], route_class=answered_by(words.encode_failure))

    @router.get(
        "/images/{id}/content",
        summary="An image that was asked for as a URL",
        responses=openapi.files(*CONTENT_TYPES.values()) | openapi.refusals(400, 404, 500, shape=words.OpenAIError),
    )
    async def content(id: Annotated[str, Path()], variant: Annotated[int, Query(ge=0, le=1_000)] = 0) -> Response:
        answer = context.job_store.find(id).answer if id.startswith(_IMAGES) else None
        file = answer.files[variant] if isinstance(answer, Answer) and variant < len(answer.files) else None
        if file is None or not file.data:
            raise JobNotFound("There is no image here, or it is no longer kept; draw it again.", field="id")
        return send_file(file)

    return router


def _responses(kind: words.Kind) -> dict[int | str, dict[str, Any]]:
    responses = openapi.answers(words.OpenAIImages, *openapi.ASKING, 409, shape=words.OpenAIError)
    responses[200]["content"] |= openapi.event_stream(f"{kind}.partial_image", f"{kind}.completed", "error")
    return responses


async def _respond(
    context: ServerContext, request: Request, images_request: words.ImagesRequest, kind: words.Kind
) -> Response:
    if images_request.stream:
        return await _stream(context, request, images_request, kind)
    fields, is_kept = images_request.fields, images_request.as_url
    if images_request.as_url and (context.operations.delivery.bucket is not None or "s3Config" in fields):
        fields, is_kept = _uploaded(fields), False
    record = await context.answer(request, generation(fields), JobOptions(kept=is_kept), prefix=_IMAGES)
    answer = generated(record)
    is_served = is_kept and not words.is_uploaded(answer)
    content = f"{context.address(request)}/v1/images/{record.id}/content" if is_served else None
    return json_response(words.encode_images(images_request, answer, content))


def _uploaded(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    output = fields["output"]
    return fields | {"output": {**(output if isinstance(output, dict) else {}), "delivery": "s3"}}


def _edit_body() -> dict[str, Any]:
    """Return the documented bodies of an edit: a form, or JSON."""
    example: JsonValue = {"images": [{"image_url": "data:image/png;base64,iVBORw0KGgo…"}], "prompt": "a red apple"}
    body, other = openapi.takes_form(_FORM, "image", "prompt"), openapi.takes(_OBJECT, image=example)
    body["requestBody"]["content"] |= other["requestBody"]["content"]
    return body


async def _read_edit(request: Request, context: ServerContext) -> dict[str, JsonValue]:
    decoding, incoming = context.operations.pools.decoding, context.incoming
    if is_json(request):
        return await decoding.run(_decode_edit_object, parse_json(await incoming.read(request)))
    return await decoding.run(_decode_edit, await read_form(request, incoming))


def _decode_edit(form: Form) -> dict[str, JsonValue]:
    """Return a form as OpenAI's JSON would be, with images by our names. Blocking: masks are decoded."""
    form.check_files(_FILES, ("images",))
    images = form.images("image", "images")
    if not images:
        raise InvalidRequest("image is required: the image to change, as a file.", field="image")
    fields = form.values(but=("image", "images", "mask"))
    fields |= {"image": images[0]} if len(images) == 1 else {"images": images}
    masks: list[str | bytes] = [*form.files.get("mask", ())]
    if len(masks) > 1:
        raise InvalidRequest("mask may be sent once.", field="mask")
    if isinstance(text := form.texts.get("mask"), str) and text:
        masks.append(text)
    return fields | ({"mask_image": _white_where_changed(masks[0])} if masks else {})


def _decode_edit_object(payload: JsonValue) -> dict[str, JsonValue]:
    """Return OpenAI's JSON of an edit, with its mask as ours are. Blocking: masks are decoded."""
    if not isinstance(payload, dict):
        raise InvalidRequest('The body must be {"images": [{"image_url": "…"}], "prompt": "…"}.', field="body")
    fields = said(payload)
    if not {"image", "images"} & {ALIASES.get(name, name) for name in fields}:
        raise InvalidRequest('image is required: the image to change, as {"image_url": "…"} in images.', field="image")
    mask = fields.pop("mask", None)
    return fields | ({"mask_image": _white_where_changed(mask) if isinstance(mask, str) else mask} if mask else {})


def _white_where_changed(mask: str | bytes) -> str:
    """Return OpenAI's mask, whose transparent part is meant, as one of ours; one that is a URL as it is."""
    if isinstance(mask, str):
        if is_url(mask):
            return mask
        mask = inline_bytes(mask, "mask", MAX_BYTES)
    return to_base64(white_where_transparent(mask, "mask"))


async def _stream(
    context: ServerContext, request: Request, images_request: words.ImagesRequest, kind: words.Kind
) -> Response:
    """Return the answer as events. A refusal comes before the first of them, and is an answer of the usual kind."""
    payload = generation(images_request.fields)
    record = context.submit(request, payload, f"{_IMAGES}{job_id(request)}{context.mark}", WAITED_FOR)
    events = _events(context, record, images_request, kind)
    first = await unless_gone(request, anext(events))

    async def all_of_them() -> AsyncIterator[str]:
        try:
            yield first
            async for event in events:
                yield event
        finally:
            await events.aclose()

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers=STREAM_HEADERS)


async def _events(
    context: ServerContext, record: JobRecord, images_request: words.ImagesRequest, kind: words.Kind
) -> AsyncGenerator[str, None]:
    sent_images = 0
    has_begun = False
    try:
        async with aclosing(paced(record.watch())) as updates:
            async for progress in updates:
                if progress is None:
                    has_begun = True
                    yield WAITING
                elif progress.preview is not None and _is_due(sent_images, images_request.partial_images, progress):
                    has_begun = True
                    yield _event(words.encode_partial(kind, progress.preview, sent_images))
                    sent_images += 1
        if record.error is not None:
            if not has_begun:
                raise record.error
            yield _event(words.encode_problem(failure_of(record.error)), "error")
            return
        answer = generated(record)
        for file in answer.files:
            yield _event(words.encode_completed(kind, answer, file))
    finally:
        context.job_store.leave(record)


def _is_due(sent: int, requested: int, progress: Progress) -> bool:
    """True if the next of `requested` partial images is due: they are spread evenly over the steps."""
    return sent < requested and progress.step * (requested + 1) >= progress.total * (sent + 1)


def _event(data: dict[str, JsonValue], name: str | None = None) -> str:
    return f"event: {name or data['type']}\ndata: {json.dumps(data)}\n\n"
