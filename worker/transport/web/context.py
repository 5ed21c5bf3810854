"""What every door of the HTTP server needs, and the one way in which a door has a job done."""

import asyncio
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fastapi import Request
from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from worker.core.answer import Answer
from worker.core.errors import InvalidRequest, JobCancelled, JobNotFound, ModelNotFound, UnknownParameter
from worker.core.model import Task
from worker.service.jobs.record import JobOptions, JobRecord
from worker.service.jobs.store import JobStore
from worker.service.limits.api_keys import Keyring
from worker.service.operations import Operations
from worker.service.usage import request_id
from worker.service.usage.log import UsageLog
from worker.service.usage.metrics import Metrics
from worker.transport.job_input import read_input
from worker.transport.web.auth import Authenticator, caller_of, check_admin
from worker.transport.web.state import State
from worker.transport.web.webhooks import Webhooks

T = TypeVar("T")

# Of a job whose caller waits for it.
WAITED_FOR = JobOptions(kept=False)
MAX_KEY_CHARS = 255
# Twenty-megabyte images and a sixty-four-megabyte video, as base64, with some room.
MAX_BODY_BYTES = 120_000_000
# What is the operator's to do: it moves other callers' models off the device.
ADMIN_ACTIONS = ("preload", "unload")
# Ids that are made of a caller's words cannot be guessed by another one.
_SALT = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Everything behind the doors. `state` is asked anew for every health check."""

    operations: Operations
    job_store: JobStore
    webhooks: Webhooks
    state: Callable[[], State]
    gpu_available: bool
    metrics: Metrics
    usage_log: UsageLog
    max_body_bytes: int = MAX_BODY_BYTES
    authenticator: Authenticator = field(default_factory=lambda: Authenticator(Keyring()))
    edit_model: str | None = None

    async def answer(
        self, request: Request, payload: JsonValue, options: JobOptions = WAITED_FOR, *, prefix: str = "sync-"
    ) -> JobRecord:
        """Have a job done while its caller waits; if he hangs up, it is cancelled.

        `payload` is a job's `input`, its id will begin with `prefix`. Returns a finished job; raises the
        WorkerError that it ended with.
        """
        record = self.submit(request, payload, f"{prefix}{job_id(request)}", options)
        try:
            await unless_gone(request, record.wait())
        finally:
            self.job_store.leave(record)
        record.outcome()
        return record

    async def draw(self, request: Request, fields: Mapping[str, JsonValue]) -> Answer:
        """Have a generation done while its caller waits, of fields in our own names. Raises as `answer` does."""
        return generated(await self.answer(request, generation(fields)))

    def submit(self, connection: HTTPConnection, payload: JsonValue, id: str, options: JobOptions) -> JobRecord:
        """Hand in a job for whoever sends it. Raises AccessDenied for what is the operator's, and as the store does."""
        asked = read_input(payload)
        if asked.action in ADMIN_ACTIONS:
            check_admin(connection, f"action {asked.action} needs one of this worker's admin keys.", "action")
        # A WebSocket's headers are of all its jobs.
        replayed = connection.scope["type"] == "http" and "idempotency-key" in connection.headers
        options = replace(options, replayed=replayed, request_id=request_id.current.get())
        return self.job_store.submit(asked, id, options, caller_of(connection).name)

    def find(self, connection: HTTPConnection, id: str) -> JobRecord:
        """This caller's job with this id. Raises JobNotFound, for another's job too."""
        record = self.job_store.find(id)
        if record.caller != caller_of(connection).name:
            raise JobNotFound("No job of this caller has this id; submit it again.", field="id")
        return record

    def editor(self) -> str:
        """The model that edits images for callers who name none. Raises ModelNotFound."""
        model = self.edit_model or self.operations.introspection.first_model_for(Task.IMAGE_EDITING)
        if model is None:
            raise ModelNotFound(
                "No model of models.yaml edits images; name one as model, or let the operator add one or set "
                "EDIT_MODEL.",
                field="model",
            )
        return model


def generated(record: JobRecord) -> Answer:
    """The answer of a generation that is over. Raises the WorkerError that it ended with."""
    answer = record.outcome()
    if not isinstance(answer, Answer):
        raise TypeError(f"a generation was answered with {type(answer).__name__}")
    return answer


def generation(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`fields` as the payload of a generation, whatever they say. Raises UnknownParameter for another action."""
    if "action" in fields:
        raise UnknownParameter("action is not a field here; leave it out.", field="action")
    return {**fields, "action": "generate"}


async def read_json(request: Request, max_bytes: int) -> JsonValue:
    """The body of `request`. Raises HTTPException 413 and 415, and InvalidRequest for what is no JSON."""
    # Not for neatness: a web page may post anything else to this server without asking its browser's leave.
    if not is_json(request):
        raise HTTPException(415)
    return parse_json(await read_body(request, max_bytes))


def parse_json(body: bytes) -> JsonValue:
    """What a body says. Raises InvalidRequest for what is no JSON."""
    try:
        value: JsonValue = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON; check quotes, commas and brackets.", field="body") from None
    return value


def media_type(request: Request) -> str:
    """What the body of `request` is said to be, in small letters and without parameters; "" where nothing is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether the body of `request` is said to be JSON."""
    kind = media_type(request)
    return kind == "application/json" or kind.endswith("+json")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of `request`, read no further than allowed. Raises HTTPException 413."""
    return b"".join([chunk async for chunk in bounded(request, max_bytes)])


async def bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body of `request` as it comes, read no further than allowed. Raises HTTPException 413."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise HTTPException(413)
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > max_bytes:
            raise HTTPException(413)
        yield chunk


def job_id(connection: HTTPConnection) -> str:
    """A new id for this request's job, or the same as before when its caller and Idempotency-Key are.

    Raises InvalidRequest.
    """
    key = connection.headers.get("idempotency-key")
    if key is None:
        return str(uuid.uuid4())
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters.", field="Idempotency-Key")
    whose = f"{caller_of(connection).name or ''}\0{key}"
    return str(uuid.UUID(bytes=hmac.digest(_SALT, whose.encode(), hashlib.sha256)[:16], version=4))


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` returns. Raises JobCancelled when the caller hangs up first, and then cancels it."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise JobCancelled("The caller hung up, so the job was cancelled.")
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
