"""Replicate's HTTP API: predictions that are waited for, asked for later, cancelled, streamed or told by webhook."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.answer import Answer
from worker.core.errors import InvalidRequest, JobNotFound, ParameterOutOfRange
from worker.core.request import CONTENT_TYPES
from worker.service.jobs.record import JobOptions, JobRecord, Status
from worker.transport.web import openapi, replicate_account, replicate_models
from worker.transport.web import replicate_schema as words
from worker.transport.web.context import ServerContext, generation, job_id, read_json, unless_gone
from worker.transport.web.door import Door
from worker.transport.web.errors import answered_by, json_response
from worker.transport.web.events import STREAM_HEADERS, WAITING, paced
from worker.transport.web.file_response import send_file
from worker.transport.web.replicate_predictions import Predictions
from worker.transport.web.replicate_schema import Asked

_TAG = "Replicate's API"
_PREFER = re.compile(r"\bwait\b(?:=(\d{1,4}))?")
_MOST_WAIT_S = 60  # as there, which is what `wait` alone means too
_EVENTS = ("start", "output", "logs", "completed")
_LIFETIME = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?")
_LEAST_LIFETIME_S, _MOST_LIFETIME_S = 5, 86_400
_REFUSED = (400, 401, 403, 413, 415, 429, 500, 502, 503, 504)

Id = Annotated[str, Path(description="The id of a prediction.")]
Time = Annotated[str | None, Query(description="A time of ISO 8601, as 2026-01-31T12:00:00Z.")]


def routes(context: ServerContext) -> Door:
    """Return the routes that Replicate's clients call."""
    router = Door(tags=[_TAG], route_class=answered_by(words.encode_failure))
    predictions = Predictions(context)
    _add_create(router, predictions)
    _add_predictions(router, predictions)
    replicate_account.add_routes(router, context)
    router.include(replicate_models.routes(context, _TAG))
    return router


def _add_create(router: Door, predictions: Predictions) -> None:
    context = predictions.context
    created: dict[int | str, dict[str, Any]] = {201: openapi.of(words.Prediction, "The prediction.")}
    created |= openapi.refusals(*_REFUSED, shape=words.ReplicateError)
    example: JsonValue = {"input": {"prompt": "a red apple", "seed": 7, "num_outputs": 1}}
    about = "With `Prefer: wait` the answer waits for the end, 60 seconds at most; else it is asked for later. "
    about += "`Cancel-After: 1m30s` ends it that long after it was created, done or not."

    @router.post(
        "/v1/models/{owner}/{name}/predictions",
        summary="A prediction of a model",
        status_code=201,
        responses=created,
        openapi_extra=openapi.takes(words.CREATE, image=example),
        description=about,
    )
    async def create_of_model(owner: str, name: str, request: Request) -> Response:
        body = await _read(request, context)
        return await _create(predictions, request, replicate_models.model_named(context, owner, name), body)

    schema = {**words.CREATE, "required": ["version", "input"]}
    schema["properties"] = {"version": {"type": "string"}, **words.CREATE["properties"]}

    @router.post(
        "/v1/predictions",
        summary="A prediction of a version",
        status_code=201,
        responses=created,
        openapi_extra=openapi.takes(schema, image={"version": "local/demo", "input": {"prompt": "a red apple"}}),
        description=f"`version` is a version's id, `owner/name` or `owner/name:version`. {about}",
    )
    async def create(request: Request) -> Response:
        body = await _read(request, context)
        version = body.get("version") or body.get("model")
        if not isinstance(version, str):
            raise InvalidRequest("version is required: a version's id, or owner/name.", field="version")
        return await _create(predictions, request, replicate_models.model_of_version(context, version), body)


async def _read(request: Request, context: ServerContext) -> dict[str, JsonValue]:
    body = await read_json(request, context.incoming)
    if not isinstance(body, dict) or not isinstance(body.get("input"), dict):
        raise InvalidRequest('The body must be {"input": {"prompt": "…"}}.', field="input")
    return body


async def _create(predictions: Predictions, request: Request, model: str, body: dict[str, JsonValue]) -> Response:
    context, sent = predictions.context, body["input"]
    sent = sent if isinstance(sent, dict) else {}
    webhook, events = _webhook(body)
    context.webhooks.check(webhook)
    fields, notes = await replicate_models.decode_input(context, request, model, sent)
    lifetime_s = _lifetime(request)
    if lifetime_s is not None:
        fields = {**fields, "timeout_s": min(lifetime_s, number_in(fields.get("timeout_s")) or lifetime_s)}
    payload = generation({**fields, "model": model})
    id = f"{job_id(request)}{context.mark or '-u1'}"
    record = context.submit(request, payload, id, JobOptions())
    predictions.add(record, Asked(model, sent, datetime.now(UTC), notes, lifetime_s))
    if webhook is not None and record.callers == 1:
        predictions.tell(request, record, webhook, events)
    seconds = _wait(request)
    if seconds:
        await unless_gone(request, record.wait(seconds))
    # Its Python client takes "processing" for an end, and would return nothing: it asks on while it is "starting".
    return json_response(predictions.written(request, record, None if record.over else "starting"), 201)


def _wait(request: Request) -> int:
    match = _PREFER.search(request.headers.get("prefer", "").lower())
    return 0 if match is None else min(int(match[1] or _MOST_WAIT_S), _MOST_WAIT_S)


def _lifetime(request: Request) -> int | None:
    """Return the seconds of `Cancel-After`, None without it. Raises ParameterOutOfRange."""
    text = request.headers.get("cancel-after", "").strip().lower()
    if not text:
        return None
    match = _LIFETIME.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3_600 + minutes * 60 + seconds
    if not _LEAST_LIFETIME_S <= total <= _MOST_LIFETIME_S:
        raise ParameterOutOfRange(
            f"Cancel-After must be a time as 90s, 5m or 1h30m, of {_LEAST_LIFETIME_S} seconds to 24 hours.",
            field="Cancel-After",
        )
    return total


def _webhook(body: dict[str, JsonValue]) -> tuple[str | None, list[str]]:
    url, events = body.get("webhook") or None, body.get("webhook_events_filter") or [*_EVENTS]
    if url is not None and not isinstance(url, str):
        raise ParameterOutOfRange("webhook must be the text of a URL.", field="webhook")
    if not isinstance(events, list) or any(event not in _EVENTS for event in events):
        raise ParameterOutOfRange(
            f"webhook_events_filter must be a list of {', '.join(_EVENTS)}.", field="webhook_events_filter"
        )
    return url, [str(event) for event in events]


def _add_predictions(router: Door, predictions: Predictions) -> None:
    context = predictions.context
    finding = openapi.answers(words.Prediction, 401, 403, 404, 500, shape=words.ReplicateError)

    @router.get(
        "/v1/predictions",
        summary="The caller's own predictions that are kept, the newest first",
        responses=openapi.answers(words.Predictions, 400, 401, 403, 500, shape=words.ReplicateError),
        description="100 on a page; `next` is the address of the next one.",
    )
    async def list_predictions(
        request: Request,
        cursor: Annotated[str | None, Query(description="Of `next` or `previous`.")] = None,
        created_after: Time = None,
        created_before: Time = None,
        source: Annotated[str | None, Query(description="`web` for those of the website: none.")] = None,
    ) -> Response:
        return json_response(predictions.page(request))

    @router.get("/v1/predictions/{id}", summary="Where a prediction stands, and its output", responses=finding)
    async def get(id: Id, request: Request) -> Response:
        return json_response(predictions.written(request, predictions.find(request, id)))

    @router.post("/v1/predictions/{id}/cancel", summary="Cancel a prediction", responses=finding)
    async def cancel(id: Id, request: Request) -> Response:
        record = predictions.find(request, id)
        context.job_store.cancel(record)
        return json_response(predictions.written(request, record))

    stream_of = openapi.refusals(401, 404, 500, shape=words.ReplicateError)
    stream_of[200] = {"description": "Events.", "content": openapi.event_stream("logs", "output", "error", "done")}

    @router.get("/v1/predictions/{id}/stream", summary="A prediction as server-sent events", responses=stream_of)
    async def stream(id: Id, request: Request) -> Response:
        record = predictions.find(request, id)
        address = context.address(request)
        here = f"{address}/v1/predictions/{id}" if address.startswith("https:") else None
        return StreamingResponse(_events(record, here), media_type="text/event-stream", headers=STREAM_HEADERS)


async def _events(record: JobRecord, here: str | None) -> AsyncGenerator[str, None]:
    number = 0

    def event(name: str, data: str) -> str:
        nonlocal number
        number += 1
        lines = "".join(f"data: {line}\n" for line in data.rstrip("\n").split("\n"))
        return f"event: {name}\nid: {number}\n{lines}\n"

    updates: AsyncIterator[Any]
    async with aclosing(paced(record.watch())) as updates:
        async for progress in updates:
            yield WAITING if progress is None else event("logs", words.log_line(progress))
    for url in words.files_of(record, here):
        yield event("output", url)
    if record.error is not None and record.status is not Status.CANCELLED:
        yield event("error", json.dumps({"detail": record.error.message}))
    reason = {Status.CANCELLED: {"reason": "canceled"}, Status.COMPLETED: {}}.get(record.status, {"reason": "error"})
    yield event("done", json.dumps(reason))


def file_routes(context: ServerContext) -> Door:
    """Return the route of a prediction's files, which are protected by its id: it cannot be guessed."""
    router = Door(tags=[_TAG], route_class=answered_by(words.encode_failure))

    @router.get(
        "/v1/predictions/{id}/output/{index}",
        summary="A file of a prediction's output",
        responses=openapi.files(*CONTENT_TYPES.values()) | openapi.refusals(400, 404, 500, shape=words.ReplicateError),
    )
    async def output(id: Id, index: Annotated[int, Path(ge=0, le=1_000)]) -> Response:
        answer = context.job_store.find(id).answer
        file = answer.files[index] if isinstance(answer, Answer) and index < len(answer.files) else None
        if file is None or not file.data:
            raise JobNotFound("There is no file here, or it is no longer kept; run the prediction again.", field="id")
        return send_file(file)

    return router
