"""The server context: everything that the HTTP server's doors need, and their one way to run a job."""

import asyncio
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fastapi import Request
from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from worker.core.answer import Answer, AnyAnswer, ModelList, ModelSummary
from worker.core.discovery import Added, Find
from worker.core.errors import InvalidRequest, JobCancelled, ModelNotFound, UnknownParameter
from worker.core.job_input import VERSION_FIELDS
from worker.core.json_text import JsonLimits, JsonTooLarge, parse_bounded
from worker.core.model import Task
from worker.core.request import GenerationRequest
from worker.core.result import ignore_progress
from worker.remote.fleet import Fleet
from worker.service.jobs.record import JobOptions, JobRecord
from worker.service.jobs.store import ANYBODY, JobStore
from worker.service.limits.api_keys import Keyring
from worker.service.local.volume import Volume
from worker.service.operations import Operations
from worker.service.recipes.shelf import RecipeShelf
from worker.service.usage import request_id
from worker.service.usage.log import UsageLog
from worker.service.usage.metrics import Metrics
from worker.transport.job_input import read_input
from worker.transport.web.addresses import Addresses
from worker.transport.web.auth import Authenticator, caller_of, check_admin
from worker.transport.web.incoming import Incoming
from worker.transport.web.state import State
from worker.transport.web.webhooks import Webhooks

T = TypeVar("T")

# For a job whose caller waits for it.
WAITED_FOR = JobOptions(kept=False)
MAX_KEY_CHARS = 255
# Far more than a job's input may hold, which is refused by the names of its fields.
JSON_LIMITS = JsonLimits(values=100_000, texts=200_000, depth=32)
# Actions of the operator alone: they move other callers' models off the device, take it for long, or choose what others
# get.
ADMIN_ACTIONS = ("preload", "unload", "golden", "train", "train_plan", "train_control", *VERSION_FIELDS)
_NO_PROFILE = (
    "profile needs one of this worker's admin keys: it takes the device for itself and shows how it computes; "
    "leave it out."
)
# The tasks that change an image as a prompt says.
_EDITING = (Task.IMAGE_EDITING, Task.IMAGE_TO_IMAGE)
# With it, one caller cannot guess an id that was made of another caller's key.
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
    incoming: Incoming = field(default_factory=Incoming)
    max_sockets_per_caller: int = 128
    authenticator: Authenticator = field(default_factory=lambda: Authenticator(Keyring()))
    addresses: Addresses = field(default_factory=Addresses)
    edit_model: str | None = None
    public_url: str | None = None
    shows_page: bool = True
    volume: Volume | None = None
    fleet: Fleet | None = None
    """The workers behind a gateway."""
    recipes: RecipeShelf | None = None
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    """The settings as an operator may read them."""
    add_model: Callable[[str, Find], Added] | None = None
    """Writes a find into models.yaml under a name, and has it served. Blocking. Raises InvalidRequest."""
    process: int | None = None
    """The number of this process, if there are several behind the port."""

    @property
    def mark(self) -> str:
        """The end of a job's id, by which its process is found among several."""
        return "" if self.process is None else f"-u{self.process}"

    async def answer(
        self,
        request: Request,
        payload: JsonValue,
        options: JobOptions = WAITED_FOR,
        *,
        prefix: str = "sync-",
        begun: Callable[[JobRecord], None] = lambda record: None,
    ) -> JobRecord:
        """Run a job while its caller waits; cancel it if they hang up.

        `payload` is a job's `input`; the job's id begins with `prefix`, and `begun` gets it once it is submitted.
        Returns the finished job. Raises the WorkerError that it ended with.
        """
        record = self.submit(request, payload, f"{prefix}{job_id(request)}{self.mark}", options)
        begun(record)
        try:
            await unless_gone(request, record.wait())
        finally:
            self.job_store.leave(record)
        record.outcome()
        return record

    async def generate(self, request: Request, fields: Mapping[str, JsonValue]) -> Answer:
        """Run a generation while its caller waits, of fields in our own names. Raises as `answer` does."""
        return generated(await self.answer(request, generation(fields)))

    async def ask(self, request: Request, fields: Mapping[str, JsonValue]) -> AnyAnswer:
        """Return the answer to a question about models or the worker, which is no job. Raises WorkerError."""
        self.addresses.charge(request)
        caller, id = caller_of(request).name, request_id.current.get()
        work = self.operations.perform(read_input(dict(fields), comes_once=True), id, ignore_progress, caller)
        return await unless_gone(request, work)

    async def models(self, request: Request) -> tuple[ModelSummary, ...]:
        """Return what a caller is told of every model of models.yaml. Raises RateLimited."""
        answer = await self.ask(request, {"action": "models"})
        return answer.models if isinstance(answer, ModelList) else ()

    def submit(self, connection: HTTPConnection, payload: JsonValue, id: str, options: JobOptions) -> JobRecord:
        """Submit a job for its sender. Raises AccessDenied for what is the operator's alone, and the store's errors."""
        self.addresses.charge(connection)
        # A WebSocket's headers are of all its jobs.
        replayed = connection.scope["type"] == "http" and "idempotency-key" in connection.headers
        job_input = read_input(payload, streams=options.kept, comes_once=not replayed)
        if job_input.action in ADMIN_ACTIONS:
            check_admin(connection, f"action {job_input.action} needs one of this worker's admin keys.", "action")
        if isinstance(job_input.request, GenerationRequest) and job_input.request.profile:
            check_admin(connection, _NO_PROFILE, "profile")
        options = replace(
            options,
            replayed=replayed,
            request_id=request_id.current.get(),
            received_at=connection.scope.get("worker.received_at"),
        )
        return self.job_store.submit(job_input, id, options, caller_of(connection).name)

    def find(self, connection: HTTPConnection, id: str, *, admin_finds_all: bool = False) -> JobRecord:
        """Return this caller's job with this id. Raises JobNotFound, for another caller's job too.

        With `admin_finds_all` an admin key finds the jobs of all callers.
        """
        caller = caller_of(connection)
        return self.job_store.find(id, only_of=ANYBODY if admin_finds_all and caller.admin else caller.name)

    def address(self, request: Request) -> str:
        """Return the address of this server as its callers know it, without a slash at its end.

        Unless the operator named it, that is the one that `request` was sent to. A proxy's word that it speaks https is
        believed of anybody: it changes nothing but the links of the caller's own answer.
        """
        if self.public_url is not None:
            return self.public_url
        proto = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
        address = request.base_url.replace(scheme=proto) if proto in ("http", "https") else request.base_url
        return str(address).rstrip("/")

    def editor(self) -> str:
        """Return the model that edits images for callers who name none. Raises ModelNotFound."""
        model = self.edit_model or self.operations.introspection.default_model_for(_EDITING)
        if model is None:
            raise ModelNotFound(
                "The default model takes no image to change; name one that does as model, or let the operator set "
                "MODEL_ID or EDIT_MODEL.",
                field="model",
            )
        return model


def generated(record: JobRecord) -> Answer:
    """Return the answer of a generation that is over. Raises the WorkerError that it ended with."""
    answer = record.outcome()
    if not isinstance(answer, Answer):
        raise TypeError(f"a generation was answered with {type(answer).__name__}")
    return answer


def generation(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return `fields` as the payload of a generation, unchecked. Raises UnknownParameter for an action in them."""
    if "action" in fields:
        raise UnknownParameter("action is not a field here; leave it out.", field="action")
    return {**fields, "action": "generate"}


async def read_json(request: Request, incoming: Incoming) -> JsonValue:
    """Read the body of `request` as JSON. Raises HTTPException 415, InvalidRequest, and what `Incoming.read` does."""
    # Not for neatness: a web page may post anything else to this server without asking its browser's leave.
    if not is_json(request):
        raise HTTPException(415)
    return parse_json(await incoming.read(request))


def parse_json(body: bytes) -> JsonValue:
    """Parse a body as JSON. Raises InvalidRequest for invalid JSON, and for more of it than any request needs."""
    try:
        value: JsonValue = parse_bounded(body, JSON_LIMITS)
    except JsonTooLarge as error:
        raise InvalidRequest(f"The body {error}; send fewer fields, and plain ones.", field="body") from None
    except ValueError:
        raise InvalidRequest("The body is not valid JSON; check quotes, commas and brackets.", field="body") from None
    return value


def media_type(request: Request) -> str:
    """Return the declared type of the body of `request`, in small letters and without parameters; "" without one."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    """True if the body of `request` is declared as JSON."""
    kind = media_type(request)
    return kind == "application/json" or kind.endswith("+json")


def job_id(connection: HTTPConnection) -> str:
    """Return a new id for this request's job, or the earlier one if its caller and Idempotency-Key are the same.

    Raises InvalidRequest.
    """
    key = connection.headers.get("idempotency-key")
    if key is None:
        return str(uuid.uuid4())
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters.", field="Idempotency-Key")
    identity = f"{caller_of(connection).name or ''}\0{key}"
    return str(uuid.UUID(bytes=hmac.digest(_SALT, identity.encode(), hashlib.sha256)[:16], version=4))


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises JobCancelled when the caller hangs up first, and then cancels it."""
    task = asyncio.ensure_future(work)
    disconnection = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise JobCancelled("The caller hung up, so the job was cancelled.")
        return task.result()
    finally:
        task.cancel()
        disconnection.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
