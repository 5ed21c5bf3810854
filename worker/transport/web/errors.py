"""Failures as HTTP answers: one table of status numbers, one shape of body for all."""

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.core import errors
from worker.core.errors import InvalidRequest, WorkerError
from worker.service.usage import request_id
from worker.service.usage.privacy import unforeseen
from worker.transport.body import written
from worker.wire.errors import encode_error

_LOG = logging.getLogger(__name__)

# Looked up along the class's own line of descent: a new error without a row has its parent's number.
STATUS: Mapping[type[WorkerError], int] = {
    WorkerError: 500,
    errors.InvalidRequest: 400,
    errors.JobNotFound: 404,
    errors.Unauthenticated: 401,
    errors.AccessDenied: 403,
    errors.Overloaded: 429,
    errors.SourceError: 502,
    errors.JobTimeout: 504,
    errors.JobCancelled: 409,
    errors.ResultTooLarge: 413,
    errors.EngineFailure: 503,
}
# The framework's own refusals, before any of our code runs.
FRAMEWORK: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "Nothing is served at this path; GET /openapi.json lists what is."),
    408: ("request_timeout", "The request came too slowly; send it again, faster."),
    405: ("method_not_allowed", "This path does not take this method; the Allow header names those it takes."),
    413: ("request_too_large", "The request's body is too large; send less."),  # where no limit of ours is known
    414: ("address_too_long", "The address is too long; shorten it."),
    431: ("headers_too_large", "The headers are too many or too large; send less."),
    415: ("unsupported_media_type", "The body must be JSON; send it with Content-Type: application/json."),
}
# Of those: what the same request may pass the next time.
RETRYABLE = frozenset({408})


def status_of(error: WorkerError) -> int:
    """Return the HTTP status of an error."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure before a door writes it in its own shape. `body` is the usual one."""

    status: int
    body: dict[str, JsonValue]
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        """The sentence about the failure."""
        return str(self.body["error"])

    @property
    def code(self) -> str:
        """The failure's name for programs."""
        return str(self.body["code"])

    @property
    def supported_models(self) -> list[str]:
        """The ids of the models to choose from, if the request named none of them."""
        details = self.body.get("details")
        models = details.get("supported_models") if isinstance(details, dict) else None
        return [str(id) for id in models] if isinstance(models, list) else []


def failure_of(error: Exception) -> Failure:
    """Turn any exception into a failure: ours, the framework's, or an unforeseen one, which is logged."""
    if isinstance(error, HTTPException):
        other = InvalidRequest.code if error.status_code < 500 else WorkerError.code
        code, text = FRAMEWORK.get(error.status_code, (other, ""))
        detail = str(error.detail)
        usual = detail == HTTPStatus(error.status_code).phrase
        body: dict[str, JsonValue] = {
            "error": text if usual and text else detail,
            "code": code,
            "retryable": error.status_code in RETRYABLE,
            "request_id": request_id.current.get(),
        }
        return Failure(error.status_code, body, error.headers or {})
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = str(first["loc"][-1])[:80]
        error = InvalidRequest(f"{field} is not valid: {first['msg']}.", field=field)
    elif not isinstance(error, WorkerError):
        error = unforeseen(error)
    headers = {}
    if (seconds := error.details.get("retry_after_s")) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return Failure(status_of(error), encode_error(error, request_id.current.get()), headers)


def error_response(error: Exception, status: int | None = None) -> Response:
    """Return an error's answer in the worker's own shape."""
    failure = failure_of(error)
    return json_response(failure.body, status or failure.status, failure.headers)


def answered_by(encode: Callable[[Failure], Response]) -> type[APIRoute]:
    """Return a kind of route whose failures, of whatever origin, are answered by `encode`."""

    class Shaped(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    return await handle(request)
                except Exception as error:
                    return encode(failure_of(error))

            return handler

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await super().handle(scope, receive, send)
            except HTTPException as error:  # a wrong method, which comes to no handler
                await encode(failure_of(error))(scope, receive, send)

    return Shaped


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `body` as JSON that every reader takes."""
    return Response(written(body), status, dict(headers or {}), media_type="application/json")


def install(app: FastAPI) -> None:
    """Give every failure of `app` this shape, where a door has none of its own."""

    async def refused(request: Request, error: Exception) -> Response:
        return error_response(error)

    for kind in (WorkerError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refused)


class Boundary:
    """The outermost layer: gives each request its id, on its answer too, and lets no exception out.

    `answered` gets the status of every answer.
    """

    def __init__(self, app: ASGIApp, answered: Callable[[int], None]) -> None:
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        current_id = request_id.accept(headers.get(b"x-request-id"))
        request_id.current.set(current_id)
        request_id.traceparent.set(request_id.accept_trace(headers.get(b"traceparent")))
        if scope["type"] == "http":  # a WebSocket's jobs come one by one
            scope["worker.received_at"] = time.monotonic()
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] in ("http.response.start", "websocket.accept"):
                started = True
                self._answered(message.get("status", 101))
                message["headers"] = [*message.get("headers", []), (b"x-request-id", current_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            failure = unforeseen(error)
            if not started and scope["type"] == "http":
                await error_response(failure)(scope, receive, send_with_id)
