"""AUTOMATIC1111's API: words or an image to images, how far they are, and an end to it."""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.answer import Answer
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.request import MAX_IMAGES
from worker.media import retouching
from worker.media.decoding import MAX_BYTES
from worker.media.images import inline_bytes, is_url, to_base64
from worker.service.jobs.record import JobRecord
from worker.transport.web import a1111_lists, openapi
from worker.transport.web import a1111_schema as words
from worker.transport.web.a1111_callers import A1111Caller, A1111Callers
from worker.transport.web.context import WAITED_FOR, ServerContext, generated, generation, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import answered_by, json_response
from worker.wire.foreign import a1111
from worker.wire.foreign.a1111 import Decoded, HiresFix
from worker.wire.result import encode_file

_JOB = "a1111-"
_MOST_SIDE = 4_096
_MOST_SEED = 2**32  # of a random one, as there
_GRID = 8  # of the second pass's size
_PLAIN_UPSCALERS = ("none", "lanczos", "nearest")


def routes(context: ServerContext) -> Door:
    """Return the routes that clients of AUTOMATIC1111's web UI call."""
    router = Door(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"], route_class=answered_by(words.encode_failure))
    callers = A1111Callers()
    _add_generations(router, context, callers)
    _add_progress(router, context, callers)
    a1111_lists.add_routes(router, context, callers)
    return router


def _add_generations(router: Door, context: ServerContext, callers: A1111Callers) -> None:
    drawn = openapi.answers(words.A1111Images, *openapi.ASKING, 409, shape=words.A1111Error)
    example: dict[str, JsonValue] = {"prompt": "a red apple", "steps": 16, "seed": 7, "width": 64, "height": 64}

    @router.post(
        "/txt2img",
        summary="Words to images",
        responses=drawn,
        openapi_extra=openapi.takes(_object(words.TXT2IMG), image=example),
        description="With `enable_hr` images are enlarged and drawn over. What has no effect is told in `info`.",
    )
    async def txt2img(request: Request) -> Response:
        return await _draw(context, request, callers.of(request), has_image=False)

    @router.post(
        "/img2img",
        summary="An image and words to images",
        responses=drawn,
        openapi_extra=openapi.takes(
            _object(words.IMG2IMG, "init_images"), image=example | {"init_images": ["iVBORw0KGgo…"]}
        ),
    )
    async def img2img(request: Request) -> Response:
        return await _draw(context, request, callers.of(request), has_image=True)

    @router.post(
        "/extra-single-image",
        summary="A larger image",
        responses=openapi.answers(words.ExtraImage, *openapi.ASKING, 409, shape=words.A1111Error),
        openapi_extra=openapi.takes(
            _object({"image": {"type": "string"}, "upscaler_1": {"type": "string"}}, "image", "upscaler_1"),
            image={"image": "iVBORw0KGgo…", "upscaler_1": "demo-upscaler", "upscaling_resize": 2},
        ),
    )
    async def extra_single_image(request: Request) -> Response:
        fields = _upscaling(await read_payload(request, context))
        answer = await _answer(context, request, callers.of(request), fields)
        return json_response({"html_info": "", "image": encode_file(answer.files[0])})


def _add_progress(router: Door, context: ServerContext, callers: A1111Callers) -> None:
    nothing = openapi.answers(words.Nothing, 401, 403, 500, shape=words.A1111Error)

    @router.get(
        "/progress",
        summary="How far the caller's newest job is",
        responses=openapi.answers(words.Standing, 400, 401, 500, shape=words.A1111Error),
    )
    async def progress(
        request: Request, skip_current_image: bool = Query(default=False, description="Whether to leave it out.")
    ) -> Response:
        record = next((each for each in reversed(callers.of(request).records) if not each.over), None)
        began = record.started_at if record is not None else None
        seconds = time.monotonic() - began if began is not None else 0.0
        return json_response(words.encode_standing(record, seconds, with_image=not skip_current_image))

    @router.post("/interrupt", summary="Cancel all of the caller's jobs", responses=nothing)
    async def interrupt(request: Request) -> Response:
        for record in [*callers.of(request).records]:
            context.job_store.cancel(record)
        return json_response({})

    @router.post("/skip", summary="Cancel the caller's job that is drawn now", responses=nothing)
    async def skip(request: Request) -> Response:
        if record := next((each for each in callers.of(request).records if not each.over), None):
            context.job_store.cancel(record)
        return json_response(None)


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": dict(properties), "additionalProperties": True}


async def read_payload(request: Request, context: ServerContext) -> dict[str, JsonValue]:
    """Read a payload, which is an object. Raises as `read_json` does, and InvalidRequest."""
    payload = await read_json(request, context.incoming)
    if not isinstance(payload, dict):
        raise InvalidRequest('The body must be an object, as {"prompt": "…"}.', field="body")
    return payload


async def _draw(context: ServerContext, request: Request, caller: A1111Caller, *, has_image: bool) -> Response:
    payload = await read_payload(request, context)
    decoded = a1111.decode(payload, caller.options, has_image=has_image)
    is_one = has_image and not decoded.sources
    fields = await context.operations.pools.decoding.run(_retouched, decoded) if is_one else decoded.fields
    fields = await _with_embeddings(context, {"previews": True, **fields})
    output = fields.get("output")
    plain = fields | {"output": {**(output if isinstance(output, dict) else {}), "delivery": "base64"}}
    if decoded.hires is not None:
        answers = await _twice(context, request, caller, plain, decoded.hires)
    elif decoded.sources:
        answers = await _each(context, request, caller, plain, decoded)
    else:
        answers = [await _answer(context, request, caller, _with_metadata(plain))]
    files = [file for answer in answers for file in answer.files] if decoded.sends_images else []
    return json_response(words.encode_images(payload, answers, files, decoded.batch_size, decoded.notes))


async def _answer(
    context: ServerContext, request: Request, caller: A1111Caller, fields: Mapping[str, JsonValue], part: str = ""
) -> Answer:
    """Run one job while its caller waits, who can ask how far it is."""
    known: list[JobRecord] = []

    def begun(record: JobRecord) -> None:
        known.append(record)
        caller.records.append(record)

    try:
        record = await context.answer(request, generation(fields), WAITED_FOR, prefix=f"{_JOB}{part}", begun=begun)
        return generated(record)
    finally:
        for record in known:
            caller.records.remove(record)


async def _each(
    context: ServerContext, request: Request, caller: A1111Caller, fields: dict[str, JsonValue], decoded: Decoded
) -> list[Answer]:
    """Draw over several images: image i of an iteration from source i, each with the next seed."""
    count, seed = fields.pop("num_images", 1), number_in(fields.get("seed"))
    first = secrets.randbelow(_MOST_SEED) if seed is None or seed < 0 else int(seed)
    if not isinstance(count, int) or count > MAX_IMAGES:
        raise ParameterOutOfRange(f"n_iter x init_images must be at most {MAX_IMAGES} images.", field="n_iter")
    run = context.operations.pools.decoding.run
    parts = []
    for index in range(count):
        source = replace(decoded, fields=fields | {"image": decoded.sources[index % len(decoded.sources)]})
        parts.append(_with_metadata(await run(_retouched, source)) | {"seed": first + index})
    runs = (_answer(context, request, caller, part, f"i{index}-") for index, part in enumerate(parts))
    return await asyncio.gather(*runs)


async def _twice(
    context: ServerContext, request: Request, caller: A1111Caller, fields: dict[str, JsonValue], hires: HiresFix
) -> list[Answer]:
    """Draw images, enlarge them, and draw over each: hires fix."""
    width = fields.get("width")
    scale = hires.width / width if hires.width and isinstance(width, int) and width > 0 else hires.scale
    upscale: JsonValue = False if hires.upscaler is None else {"model": hires.upscaler, "scale": min(8.0, scale)}
    first = await _answer(context, request, caller, {**fields, "upscale": upscale})
    times = scale if hires.upscaler is None else 1.0  # else it is enlarged already
    width = hires.width or int(first.width * times)
    height = hires.height or int(first.height * width / first.width)
    again = {**fields, **hires.fields, "width": width // _GRID * _GRID, "height": height // _GRID * _GRID}
    again |= {"num_images": 1, "upscale": False}
    parts = (
        again | {"image": to_base64(file.data) if file.data else str(file.url), "seed": seed}
        for file, seed in zip(first.files, first.seeds, strict=True)
    )
    runs = (_answer(context, request, caller, _with_metadata(part), f"hr{index}-") for index, part in enumerate(parts))
    return await asyncio.gather(*runs)


def _with_metadata(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields of a job whose files say what they were drawn from, as that web UI's do."""
    output = fields.get("output")
    return {**fields, "output": {**(output if isinstance(output, dict) else {}), "metadata": True}}


async def _with_embeddings(context: ServerContext, fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields with the operator's embeddings whose names stand in the prompts: that calls them up there."""
    text = f"{fields.get('prompt', '')} {fields.get('negative_prompt', '')}"
    introspection = context.operations.introspection
    names = await introspection.adapters("embedding") if "embeddings" not in fields else ()
    named = [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    references: list[JsonValue] = [introspection.adapter_file("embedding", name) for name in named]
    return fields | {"embeddings": references} if references else fields


def _retouched(decoded: Decoded) -> dict[str, JsonValue]:
    """Return the fields with image and mask as they are to be drawn from. Blocking: they are decoded."""
    fields, how = decoded.fields, decoded.retouching
    size = _size(fields) if how.resize != "crop" else None
    if "mask_image" not in fields and size is None:
        return fields
    image = retouching.plain_image(_bytes(fields["image"], "init_images"), "init_images")
    layers = {"image": image}
    if "mask_image" in fields:
        data = _bytes(fields["mask_image"], "mask")
        mask = retouching.plain_mask(data, "mask", is_inverted=how.is_inverted, blur=how.blur)
        mask = retouching.stretched(mask, image.width, image.height)
        layers = {"image": retouching.filled(image, mask) if how.is_filled else image, "mask_image": mask}
    if size is not None:
        fit = retouching.stretched if how.resize == "stretch" else retouching.padded
        layers = {name: fit(layer, *size) for name, layer in layers.items()}
    return fields | {name: to_base64(retouching.to_png(layer)) for name, layer in layers.items()}


def _size(fields: Mapping[str, JsonValue]) -> tuple[int, int] | None:
    """Return the size that was asked for; None for one that is refused later, or none."""
    width, height = fields.get("width"), fields.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    return (width, height) if 0 < width <= _MOST_SIDE and 0 < height <= _MOST_SIDE else None


def _bytes(value: JsonValue, field: str) -> bytes:
    if not isinstance(value, str) or is_url(value):
        raise InvalidRequest(f"{field} must be base64 here, since it is changed before it is used.", field=field)
    return inline_bytes(value, field, MAX_BYTES)


def _upscaling(payload: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields of a job that enlarges one image. Raises InvalidRequest and its kin."""
    upscaler = payload.get("upscaler_1")
    if not isinstance(upscaler, str) or upscaler.lower() in _PLAIN_UPSCALERS:
        raise ParameterOutOfRange(
            "upscaler_1 must be one of /sdapi/v1/upscalers: without a model nothing is enlarged here.",
            field="upscaler_1",
        )
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if payload.get(name) not in (None, 0):
            raise UnknownParameter(f"{name} is not served: there is one upscaler; leave it out.", field=name)
    if payload.get("resize_mode") not in (None, 0):
        raise ParameterOutOfRange("resize_mode must be 0 here; send upscaling_resize.", field="resize_mode")
    fields: dict[str, JsonValue] = {"model": upscaler, "image": payload.get("image")}
    return fields | {"scale": payload.get("upscaling_resize", 2)}
