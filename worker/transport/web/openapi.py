"""The server's description of itself: schemas of its answers and bodies, examples, and the document made of them."""

import threading
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import models_json_schema

from worker.catalog.interface.request_fields import request_fields
from worker.core.job_input import ACTIONS
from worker.transport.web.runpod_schema import MAX_POLICY_MS, MIN_POLICY_MS, Status
from worker.transport.web.state import State

BUILDING = threading.Lock()
"""Held while the framework builds what it makes of routes: it sets the process's warnings aside for that, which two
threads at once would put back in the wrong order."""

GENERATION: dict[str, JsonValue] = {"prompt": "a red apple", "num_inference_steps": 16, "seed": 7}
_POLICY_MS = {"type": ["number", "null"], "minimum": MIN_POLICY_MS, "maximum": MAX_POLICY_MS}
JOB_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": False,
    "properties": {
        "input": {"$ref": "#/components/schemas/Generation"},
        "webhook": {"type": ["string", "null"], "description": "An https URL, called with the finished job."},
        "s3Config": {"anyOf": [{"$ref": "#/components/schemas/S3Config"}, {"type": "null"}]},
        "policy": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "executionTimeout": _POLICY_MS | {"description": "Of the work on it, without its time in the queue."},
                "ttl": _POLICY_MS | {"description": "Of its whole life here, its result's included."},
                "lowPriority": {"type": ["boolean", "null"], "description": "Taken, and without effect here."},
            },
        },
    },
}
RUN_SCHEMA = {"anyOf": [{"$ref": "#/components/schemas/Generation"}, JOB_SCHEMA]}
MODEL_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "model": {"type": ["string", "null"], "maxLength": 512, "description": "An id, alias or reference."}
    },
}
_DESCRIPTION = (
    "Runs any diffusion model behind one small JSON request. `/run` answers with the image; `/v2/{endpoint}/…` is "
    "RunPod's API, with jobs that are asked for later; `/ws` and `/events/{id}` tell of each step. "
    "`/diffusers/generate`, `/edit` and `/v1/images/…` speak the protocols of Hugging Face's and OpenAI's clients."
)
_STATUS_TEXT = {
    400: "The request cannot be served as it stands; `field` says why.",
    401: "No API key where one is needed, or one that is not known.",
    403: "A gated repository, a refused token, or a place that is not allowed.",
    404: "No such job, model or path; or it is no longer kept.",
    409: "The job was cancelled.",
    413: "The request or its result is too large.",
    415: "The body is not of the kind that this path takes.",
    429: "Too many jobs are waiting; Retry-After says when to come again.",
    500: "Something unforeseen; the worker's log has the details.",
    502: "Where the weights come from does not answer, or not with what it should.",
    503: "The model or its device failed, or the server is not ready.",
    504: "The deadline passed.",
}
EVENTS = ("progress", "result", "failed")
ASKING = (400, 401, 403, 413, 415, 429, 500, 502, 503, 504)


class Documented(BaseModel):
    """A JSON object of an answer; more keys may come with later versions."""

    # No validator is made of it: answers are written by the doors, and this is for the document alone.
    model_config = ConfigDict(extra="allow", defer_build=True)


class Error(Documented):
    """Any failure."""

    error: str = Field(description="One sentence: what, which limit, how to mend it.")
    code: str = Field(examples=["parameter_out_of_range"])
    retryable: bool
    request_id: str
    field: str | None = None
    hint: str | None = None
    details: dict[str, JsonValue] | None = None

    model_config = ConfigDict(json_schema_extra={"required": ["error", "code", "retryable", "request_id"]})


class Jobs(Documented):
    """How many are worked on, and how many wait: for a place, for company, for the device."""

    running: int
    queued: int


class ProcessHealth(Documented):
    """What one of several processes is doing."""

    process: int
    status: State
    reason: str | None = None
    running: str | None
    jobs: Jobs
    resident_models: list[str]


class Health(Documented):
    """What this server is doing."""

    status: State
    reason: str | None = Field(default=None, description="Why a model that should be ready is not.")
    gpu_available: bool
    version: str
    running: str | None = Field(description="What the device does: the ids of the jobs.")
    jobs: Jobs
    resident_models: list[str]
    alerts: list[str] = Field(description="The operator's alerts that are firing, by name.")
    volume_id: str | None = Field(description="An id of the volume: workers that share its versions have the same.")
    processes: list[ProcessHealth] | None = Field(default=None, description="Of each process, where there are several.")


class Ping(Documented):
    """Whether this server is ready."""

    status: State
    reason: str | None = Field(default=None, description="Why a model that should be ready is not.")


class Ran(Documented):
    """A finished job: the result itself, and once more in RunPod's wrapping."""

    id: str
    status: Literal["COMPLETED"]
    delayTime: int = Field(description="Milliseconds until work on it began.")  # noqa: N815
    executionTime: int = Field(description="Milliseconds of work.")  # noqa: N815
    output: dict[str, JsonValue] = Field(description="The result: docs/api.md, Answer.")
    image: str | None = Field(default=None, description="The image, base64, where there is one.")
    images: list[str] | None = Field(default=None, description="The images, base64, where there are several.")
    lightning_enabled: bool | None = None


class Job(Documented):
    """Where a job stands."""

    id: str
    status: Status
    delayTime: int | None = None  # noqa: N815
    executionTime: int | None = None  # noqa: N815
    output: JsonValue = None
    error: str | None = None


class ListedJob(Documented):
    """One of a caller's jobs, in a list of them."""

    id: str
    status: Status
    action: str
    model: str | None = Field(description="As it was sent, and once the job is done its id.")
    age_s: float = Field(description="Seconds since it was handed in.")
    delayTime: int | None = None  # noqa: N815
    executionTime: int | None = None  # noqa: N815
    prompt: str | None = Field(default=None, description="Of the caller's own jobs: its first 200 characters.")
    name: str | None = Field(default=None, description="Of the caller's own trainings.")
    progress: dict[str, JsonValue] | None = Field(default=None, description="Of a running job, without its preview.")
    error: str | None = None
    code: str | None = None
    caller: str | None = Field(default=None, description="Whose job it is, in the list of all callers' jobs.")


class ListedJobs(Documented):
    """Jobs, the newest first."""

    jobs: list[ListedJob]


class Chunks(Documented):
    """What happened since the last look."""

    status: Status
    stream: list[dict[str, JsonValue]]


class JobCounts(Documented):
    """How many jobs there are."""

    completed: int
    failed: int
    inProgress: int  # noqa: N815
    inQueue: int  # noqa: N815
    retried: int


class EndpointHealth(Documented):
    """RunPod's view of an endpoint."""

    jobs: JobCounts
    workers: dict[str, int]


class Purged(Documented):
    """What was taken out of the queue."""

    removed: int
    status: Literal["completed"]


class Usage(Documented):
    """What was drawn, added up."""

    by: str
    since: str = Field(description="The first day that counts, in UTC.")
    usage: dict[str, dict[str, JsonValue]] = Field(description="Sums by day, model or caller: docs/observability.md.")


class Models(Documented):
    """The registry."""

    models: list[dict[str, JsonValue]]


class Token(Documented):
    """What a browser may send in an address in place of a key."""

    token: str
    expires_in: int = Field(description="Seconds in which a connection may be opened with it.")


class Links(Documented):
    """What this server is, and where to go on."""

    name: str
    version: str
    links: dict[str, str]


class AnyObject(Documented):
    """A JSON object, described in docs/api.md."""


class Generation(request_fields()):  # type: ignore[misc]  # made of the table of adapter kinds
    """What to draw: any field of docs/api.md, and any parameter of the model's own pipeline by its diffusers name."""

    action: str | None = Field(default=None, json_schema_extra={"enum": [*ACTIONS, None]})


def answers(body: type[BaseModel], *failures: int, shape: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """Return the documented answers of a route: `body` with 200, and these failures in the door's own shape."""
    return {200: of(body)} | refusals(*failures, shape=shape)


def refusals(*failures: int, shape: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """Return the documented failures of a route."""
    return {status: of(shape, _STATUS_TEXT[status]) for status in failures}


def of(body: type[BaseModel], description: str = "Successful Response") -> dict[str, Any]:
    """Return the documented answer that is a `body`.

    It is named, and described once the document is asked for: the framework would make a validator of it for every
    route at start, five hundred in all, and doors write their answers by themselves.
    """
    if _BODIES.setdefault(body.__name__, body) is not body:
        raise ValueError(f"two bodies are called {body.__name__}")
    schema = {"$ref": _NAMED.format(model=body.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def or_page(body: type[BaseModel]) -> dict[str, Any]:
    """Return the documented answer that is a `body` for programs and a page for browsers."""
    answer = of(body)
    answer["content"]["text/html"] = {"schema": {"type": "string"}}
    return answer


_NAMED = "#/components/schemas/{model}"
_BODIES: dict[str, type[BaseModel]] = {}  # by name


def files(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the documented answers of a route that sends a file of one of these kinds, or says where it is."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    elsewhere = {"description": "The file is in the bucket that Location names: it exceeds what an answer may have."}
    return {200: {"description": "The file.", "content": content}, 303: elsewhere}


def takes_form(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """Return the documented form of a route that reads it by itself."""
    schema = {"type": "object", "required": [*required], "properties": dict(properties)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def takes(schema: Mapping[str, Any], **examples: JsonValue) -> dict[str, Any]:
    """Return the documented JSON body of a route that reads it by itself."""
    content = {"schema": dict(schema), "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def events(*failures: int) -> dict[int | str, dict[str, Any]]:
    """Return the documented answers of a route that streams."""
    return refusals(*failures) | {200: {"description": "Events.", "content": event_stream(*EVENTS)}}


def event_stream(*names: str) -> dict[str, Any]:
    """Return the documented content of server-sent events of these names."""
    event = {"type": "object", "required": ["data"], "properties": {"event": {"enum": [*names]}, "data": {}}}
    return {"text/event-stream": {"schema": event}}


def generation_schema() -> dict[str, Any]:
    """Return the schema of a job's input, with room for the fields that only a model's own schema knows."""
    schema: dict[str, Any] = Generation.model_json_schema(ref_template=_NAMED)
    schema["properties"].pop("params")
    schema["additionalProperties"] = True
    schema.pop("$defs", None)
    return schema


def install(app: FastAPI, public_url: str | None = None) -> None:
    """Let `app` describe itself, once, when it is first asked; `public_url` is its address if it is known."""

    def described() -> dict[str, Any]:
        description = get_openapi(
            title=app.title,
            version=app.version,
            description=_DESCRIPTION,
            routes=app.routes,
            summary=app.summary,
            servers=[{"url": public_url}] if public_url else None,
        )
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        inner = Generation.model_json_schema(ref_template=_NAMED).get("$defs", {})
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{}, {"key": []}]  # needed where the operator set API_KEYS
        _, bodies = models_json_schema([(body, "serialization") for body in _BODIES.values()], ref_template=_NAMED)
        named = bodies["$defs"]
        for value in [value for schema in named.values() for value in schema.get("properties", {}).values()]:
            if "default" in value and value["default"] is None:  # which a reader takes for a value that is sent
                del value["default"]
        schemas |= named | inner | {"Generation": generation_schema()}
        # The framework adds its own answer for bad requests to every route; here they are 400, like all others.
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in description["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return description

    def document() -> dict[str, Any]:
        with BUILDING:
            if app.openapi_schema is None:
                app.openapi_schema = described()
            return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
