"""What only the operator may see and do: the volume's models, the log of all operations, the settings as read."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from worker.core.discovery import Discovery
from worker.core.errors import InvalidRequest
from worker.remote.fleet import RemoteVolume
from worker.remote.replica import ReplicaState
from worker.service.alerts.alarm import AlertState
from worker.service.limits.api_keys import Keyring
from worker.service.limits.key_rights import KeyRight
from worker.service.local.volume import Volume
from worker.transport.web import openapi
from worker.transport.web.auth import caller_of, check_admin
from worker.transport.web.context import ServerContext, read_json, unless_gone
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.incoming import Incoming

_Text = Annotated[str, Field(min_length=1, max_length=512)]


class _Named(BaseModel):
    """What /admin/cache lists by this name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Text = Field(description="As /admin/cache lists it, or the model's or repository's.")


class _Pinned(_Named):
    """The same, and whether it is never evicted."""

    pinned: bool


class _Pulled(BaseModel):
    """A model to fetch."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: _Text = Field(description="An id, alias or reference.")


class _Wanted(BaseModel):
    """A find that is to stand in models.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=256)] = Field(description="Its id in models.yaml.")
    model: _Text = Field(description="The reference, as discover shows it.")


_Worker = Annotated[str | None, Query(max_length=128, description="Of a gateway: one of its workers over HTTP.")]
_Body = TypeVar("_Body", bound=BaseModel)
_REFUSED = "The operator's pages are for one of this worker's admin keys only."


def _admin(request: Request) -> None:
    check_admin(request, _REFUSED)


def routes(context: ServerContext) -> Door:
    """Return the routes below /admin."""
    router = Door(prefix="/admin", tags=["admin"], dependencies=[Depends(_admin)])
    telling = openapi.answers(openapi.AnyObject, 400, 401, 403, 500)

    @router.get(
        "/settings", summary="The settings as they were read; of secrets whether they are set", responses=telling
    )
    async def settings() -> Response:
        return json_response({"settings": dict(context.settings)})

    @router.get("/audit", summary="The newest operations of all callers, from the usage log", responses=telling)
    async def audit(
        limit: Annotated[int, Query(ge=1, le=1_000, description="How many at most.")] = 100,
        days: Annotated[int, Query(ge=1, le=3_660, description="How many days back, today included.")] = 2,
    ) -> Response:
        since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
        lines = await context.operations.pools.own.run(context.usage_log.newest, since, limit)
        return json_response({"since": since, "operations": lines})

    @router.get("/alerts", summary="Where each of the operator's alerts stands", responses=telling)
    async def alerts() -> Response:
        return json_response({"alerts": [_alert(state) for state in context.operations.alerts.states()]})

    @router.get("/keys", summary="The keys by their names, with their rights; no key is kept here", responses=telling)
    async def keys() -> Response:
        return json_response({"keys": _keys(context.authenticator.keys)})

    @router.get("/fleet", summary="The workers behind a gateway; none behind a worker", responses=telling)
    async def fleet() -> Response:
        states = () if context.fleet is None else context.fleet.states()
        return json_response({"workers": [_replica(state) for state in states]})

    @router.post(
        "/models/add",
        summary="Write what discover found into models.yaml, or where it waits for a review",
        responses=openapi.answers(openapi.AnyObject, *openapi.ASKING),
        openapi_extra=takes(_Wanted),
    )
    async def add(request: Request) -> Response:
        body = await read_body(_Wanted, request, context.incoming)
        return json_response(await _added(context, request, body))

    _add_volume_routes(router, context)
    return router


async def _added(context: ServerContext, request: Request, wanted: _Wanted) -> dict[str, JsonValue]:
    """Look at a reference as discover does, and write it. Raises what is wrong with it, InvalidRequest."""
    answer = await context.ask(request, {"action": "discover", "reference": wanted.model})
    if not isinstance(answer, Discovery) or not answer.finds:
        reasons = [item.reason for item in answer.withheld] if isinstance(answer, Discovery) else []
        raise InvalidRequest(" ".join(reasons) or "model could not be looked at in time; ask again.", field="model")
    if context.add_model is None:
        raise InvalidRequest("This server has no models.yaml of its own to write.", field="path")
    added = await context.operations.pools.own.run(context.add_model, wanted.name, answer.finds[0])
    return {"name": added.name, "model": added.reference, "file": added.file, "waits": added.waits}


def _keys(keyring: Keyring) -> list[JsonValue]:
    admins, callers = ({*names.values()} for names in (keyring.admins, keyring.callers))
    told: list[JsonValue] = []
    for name in sorted(admins | callers):
        right = keyring.rights.get(name, KeyRight())
        models: list[JsonValue] | None = None if right.models is None else [*right.models]
        admin = name in admins or not admins
        told.append({"name": name, "admin": admin, "models": models, "weight": right.weight})
    return told


def _replica(state: ReplicaState) -> JsonValue:
    return {
        "worker": state.name,
        "kind": state.kind,
        "tier": state.tier,
        "health": state.health,
        "running": state.jobs_running,
        "queued": state.jobs_queued,
        "queue_s": round(state.queue_s, 1),
        "resident_models": [*sorted(state.resident)],
        "memory_gb": None if state.vram_bytes is None else round(state.vram_bytes / 2**30, 1),
        "has_cache": state.kind == "http",
    }


def _alert(report: AlertState) -> JsonValue:
    rule = report.rule
    return {
        "name": report.name,
        "state": report.state,
        "measure": rule.measure,
        "model": rule.model,
        "value": report.value,
        "above": rule.above,
        "below": rule.below,
        "for_s": rule.for_s,
        "since_s": round(report.since_s, 1),
    }


def _add_volume_routes(router: Door, context: ServerContext) -> None:
    asking = openapi.answers(openapi.AnyObject, *openapi.ASKING)

    def volume(worker: str | None) -> Volume | RemoteVolume:
        if context.fleet is not None:
            return context.fleet.volume(worker)
        if worker is not None:
            raise InvalidRequest("worker is for gateways, and this is a worker; leave it out.", field="worker")
        if context.volume is None:
            raise InvalidRequest("Nothing lies on a volume of this server.", field="path")
        return context.volume

    @router.get(
        "/cache", summary="The models on the volume", responses=openapi.answers(openapi.AnyObject, 400, 401, 403, 500)
    )
    async def cache(worker: _Worker = None) -> Response:
        held = volume(worker)
        if isinstance(held, RemoteVolume):
            return json_response((await held.contents()).model_dump(mode="json"))
        entries, used = await held.contents()
        models: list[JsonValue] = [
            {
                "name": entry.name,
                "files": len(entry.files),
                "bytes": entry.total_bytes,
                "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
                "pinned": entry.pinned,
            }
            for entry in entries
        ]
        return json_response({"bytes": used, "max_bytes": held.max_bytes, "models": models})

    @router.post("/cache/pin", summary="Never evict a model", responses=asking, openapi_extra=takes(_Pinned))
    async def pin(request: Request, worker: _Worker = None) -> Response:
        body = await read_body(_Pinned, request, context.incoming)
        await volume(worker).pin(body.name, pinned=body.pinned)
        return json_response(body.model_dump())

    @router.post("/cache/remove", summary="Remove a model", responses=asking, openapi_extra=takes(_Named))
    async def remove(request: Request, worker: _Worker = None) -> Response:
        body = await read_body(_Named, request, context.incoming)
        return json_response({"name": body.name, "freed_bytes": await volume(worker).remove(body.name)})

    @router.post("/cache/pull", summary="Fetch a model's files", responses=asking, openapi_extra=takes(_Pulled))
    async def pull(request: Request, worker: _Worker = None) -> Response:
        body = await read_body(_Pulled, request, context.incoming)
        held = volume(worker)
        if isinstance(held, RemoteVolume):
            size, revision = await unless_gone(request, held.pull(body.model))
        else:
            files = await unless_gone(request, held.pull(body.model, caller_of(request).name))
            size, revision = files.total_bytes, files.revision
        return json_response({"model": body.model, "bytes": size, "revision": revision})


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what a route's document says of a body of this kind."""
    return openapi.takes(kind.model_json_schema())


async def read_body(kind: type[_Body], request: Request, incoming: Incoming) -> _Body:
    """Read a body of this kind. Raises InvalidRequest, and what `read_json` does."""
    try:
        return kind.model_validate(await read_json(request, incoming))
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])[:80] if first["loc"] else "body"
        raise InvalidRequest(f"{field} is not valid: {first['msg']}.", field=field) from None
