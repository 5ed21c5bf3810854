"""Replicate's models: `owner/name` and versions, as models of models.yaml, each with the schema of its inputs."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response
from pydantic import JsonValue
from starlette.routing import Match
from starlette.types import Scope

from worker.core.answer import ModelSummary
from worker.core.errors import JobNotFound, ModelNotFound, WorkerError
from worker.core.turn import begun
from worker.service.operations import QUESTION_S
from worker.transport.web import openapi
from worker.transport.web import replicate_schema as words
from worker.transport.web.auth import caller_of
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import answered_by, json_response
from worker.wire.foreign import cog

_SHAPED = ("aspect_ratio", "megapixels")
_SLASH = b"%2f"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_SIDE = 4_096
_URI: Mapping[str, JsonValue] = {"type": "string", "format": "uri"}
# Names of Replicate's models that every model takes here.
_ALIASES: Mapping[str, JsonValue] = {
    "num_outputs": {"type": "integer", "minimum": 1, "description": "num_images by its other name."},
    "aspect_ratio": {"type": "string", "description": "A shape as 16:9, in the model's own number of pixels."},
    "megapixels": {"type": "string", "description": "A share of the model's own number of pixels."},
    "output_format": {"type": "string", "enum": ["png", "jpg", "webp"]},
    "output_quality": {"type": "integer", "minimum": 0, "maximum": 100},
    "prompt_strength": {"type": "number", "minimum": 0, "maximum": 1, "description": "strength by its other name."},
    "go_fast": {"type": "boolean", "description": "Taken, and without effect here."},
}
_HIDDEN = ("action", "model", "traceparent", "s3Config")


class OfTwoParts(answered_by(words.encode_failure)):  # type: ignore[misc]  # a class made for this door
    """A route whose owner and name are two parts of the path.

    `/v1/models/…` is OpenAI's too, whose clients send an id as one part, its slash escaped: those are its own.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Leave escaped slashes to OpenAI's door."""
        if _SLASH in scope.get("raw_path", b"").lower():
            return Match.NONE, {}
        found: tuple[Match, Scope] = super().matches(scope)
        return found


def routes(context: ServerContext, tag: str) -> Door:
    """Return the routes that describe models."""
    router = Door(prefix="/v1/models/{owner}/{name}", tags=[tag], route_class=OfTwoParts)
    started, since = int(time.time()), words.now()
    failures = (401, 403, 404, 429, 500, 502, 503, 504)

    async def version(request: Request, model: str) -> dict[str, JsonValue]:
        return _encode_version(model, await schema_of(context, request, model), since)

    @router.get(
        "",
        summary="A model and its inputs",
        responses=openapi.answers(words.ReplicateModel, *failures, shape=words.ReplicateError),
    )
    async def model(owner: str, name: str, request: Request) -> Response:
        summary = _found(context, request, owner, name)
        latest: JsonValue
        try:
            latest = await version(request, summary.id)
        except WorkerError:  # its files cannot be looked into now: that it is there can be said all the same
            latest = None
        address = context.address(request)
        return json_response(_encode_model(summary, owner, name, address, latest, started))

    @router.get(
        "/versions",
        summary="A model's versions: one",
        responses=openapi.answers(words.Versions, *failures, shape=words.ReplicateError),
    )
    async def versions(owner: str, name: str, request: Request) -> Response:
        entry = await version(request, _found(context, request, owner, name).id)
        return json_response({"next": None, "previous": None, "results": [entry]})

    @router.get(
        "/versions/{version_id}",
        summary="A version and its inputs",
        responses=openapi.answers(words.Version, *failures, shape=words.ReplicateError),
    )
    async def one_version(owner: str, name: str, version_id: str, request: Request) -> Response:
        found = _found(context, request, owner, name).id
        if version_id != words.version_of(found):
            raise JobNotFound(f"{found} has one version, {words.version_of(found)}; name that one.", field="version_id")
        return json_response(await version(request, found))

    return router


def model_named(context: ServerContext, owner: str, name: str) -> str:
    """Return what to call a model of models.yaml by, or the reference that `owner/name` is.

    Owners are of Replicate: `black-forest-labs/flux-schnell` is the model with the alias `flux-schnell`.
    """
    summary = _registered(context, f"{owner}/{name}") or _registered(context, name)
    return summary.id if summary is not None else f"{owner}/{name}"


def model_of_version(context: ServerContext, version: str) -> str:
    """Return the model of a version's id, of `owner/name:version`, or what was named.

    Raises ModelNotFound for the id of another service's version.
    """
    name, _, digest = version.rpartition(":")
    if name.count("/") == 1:
        return model_named(context, *name.split("/"))
    for summary in context.operations.introspection.models().models:
        if version == words.version_of(summary.id) or summary.is_named(version):
            return summary.id
    if version.count("/") == 1:
        return model_named(context, *version.split("/"))
    if not _DIGEST.fullmatch(version):
        return version
    raise ModelNotFound(
        f"version {digest[:64]!r} is of no model of this worker; name the model as owner/name, or let the operator "
        "give it this alias in models.yaml.",
        field="model",
    )


def _registered(context: ServerContext, name: str) -> ModelSummary | None:
    models = context.operations.introspection.models().models
    return next((model for model in models if model.is_named(name)), None)


def _found(context: ServerContext, request: Request, owner: str, name: str) -> ModelSummary:
    """Return a model that the sender may use. Raises JobNotFound."""
    summary = _registered(context, f"{owner}/{name}") or _registered(context, name)
    if summary is None or not context.operations.generation.admission.rights.may_use(
        caller_of(request).name, summary.id
    ):
        raise JobNotFound(f"There is no model {owner[:80]}/{name[:80]} here; GET /v1/models lists them.", field="name")
    return summary


async def schema_of(context: ServerContext, request: Request, model: str) -> dict[str, JsonValue]:
    """Return the JSON Schema of a request for `model`. Raises WorkerError."""
    with begun(caller_of(request).name) as turn:
        turn.stop.limit(QUESTION_S)
        answer = await context.operations.schema(model)
    return dict(answer.document)


async def decode_input(
    context: ServerContext, request: Request, model: str, sent: dict[str, JsonValue]
) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Return an input's fields in our names, with notes on what has no effect. Raises WorkerError.

    A shape is drawn in as many pixels as the model draws by itself, which its schema tells.
    """
    if not any(sent.get(name) for name in _SHAPED):
        return cog.decode(sent)
    sides = _sides(await schema_of(context, request, model))
    if len(sides) < 2:
        return cog.decode(sent)
    pixels, most = sides[0].default * sides[1].default, min(side.most for side in sides)
    # The longer side of an oblong must be one that the model draws.
    pixels = min(pixels, _within(sent.get("aspect_ratio"), most))
    return cog.decode(sent, pixels, max(side.step for side in sides))


@dataclass(frozen=True, slots=True)
class _Side:
    """A side of a model's images, in pixels."""

    default: int
    step: int
    most: int


def _sides(document: Mapping[str, JsonValue]) -> list[_Side]:
    """Return width and height as a model's schema has them, where it has a size of its own."""
    properties = document.get("properties")
    schemas = [properties.get(name) for name in ("width", "height")] if isinstance(properties, dict) else []
    return [
        _Side(default, _whole(schema.get("multipleOf"), 8), _whole(schema.get("maximum"), _MOST_SIDE))
        for schema in schemas
        if isinstance(schema, dict) and isinstance(default := schema.get("default"), int)
    ]


def _whole(value: JsonValue, default: int) -> int:
    return value if isinstance(value, int) else default


def _within(ratio: JsonValue, most: int) -> int:
    """Return the pixels of the largest shape of this ratio whose longer side has `most`."""
    across, _, down = str(ratio).partition(":")
    try:
        share = float(across) / float(down)
    except (ValueError, ZeroDivisionError):
        return most * most
    return int(most * most * min(share, 1 / share)) if share > 0 else most * most


def _encode_version(model: str, document: Mapping[str, JsonValue], since: str) -> dict[str, JsonValue]:
    """Write a model's version: its request's JSON Schema as an OpenAPI document."""
    text = json.dumps(document).replace('"#/$defs/', '"#/components/schemas/')
    moved: dict[str, JsonValue] = json.loads(text)
    fields, definitions = moved.get("properties"), moved.get("$defs")
    own = {name: part for name, part in fields.items() if name not in _HIDDEN} if isinstance(fields, dict) else {}
    needed = moved.get("required")
    schemas: dict[str, JsonValue] = {
        **(definitions if isinstance(definitions, dict) else {}),
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {**own, **_ALIASES},
            "required": [name for name in needed if name in own] if isinstance(needed, list) else [],
        },
        "Output": {"type": "array", "items": dict(_URI), "title": "Output"},
    }
    description: dict[str, JsonValue] = {
        "openapi": "3.1.0",
        "info": {"title": model, "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": schemas},
    }
    return {"id": words.version_of(model), "created_at": since, "cog_version": "0.9.0", "openapi_schema": description}


def _encode_model(
    summary: ModelSummary, owner: str, name: str, address: str, version: JsonValue, started: int
) -> dict[str, JsonValue]:
    """Write a model, by the owner and the name that it was asked by."""
    return {
        "url": f"{address}/v1/models/{owner}/{name}",
        "owner": owner,
        "name": name,
        "description": summary.description,
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version,
        "id": summary.id,
        "object": "model",
        "created": started,
        "owned_by": owner,
    }
