"""Replicate's account, hardware and uploads: what its clients ask for beside predictions and models."""

import hashlib
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, JsonValue, RootModel

from worker.core.errors import AccessDenied, InvalidRequest, JobNotFound
from worker.media.images import to_base64
from worker.transport.web import openapi
from worker.transport.web import replicate_schema as words
from worker.transport.web.auth import caller_of
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.forms import read_form
from worker.transport.web.openapi import Documented

_FAILURES = (401, 403, 500)


class Account(Documented):
    """Who asks: a key has a name, and nothing else is known of its holder."""

    type: str
    username: str
    name: str
    github_url: str | None


class Hardware(BaseModel):
    """A kind of machine."""

    name: str
    sku: str


class HardwareList(RootModel[list[Hardware]]):
    """All kinds: the one that this server has."""


class File(Documented):
    """An upload. Nothing is kept of it: `urls.get` is the file itself."""

    id: str
    name: str
    content_type: str
    size: int
    etag: str
    checksums: dict[str, str]
    metadata: dict[str, JsonValue]
    created_at: str
    expires_at: str | None
    urls: dict[str, str]


class Files(BaseModel):
    """A page of uploads."""

    next: str | None
    previous: str | None
    results: list[File]


def add_routes(router: Door, context: ServerContext) -> None:
    """Add the routes of the account, the hardware and the uploads."""

    @router.get(
        "/v1/account",
        summary="Who the caller is",
        responses=openapi.answers(Account, *_FAILURES, shape=words.ReplicateError),
    )
    async def account(request: Request) -> Response:
        name = caller_of(request).name or "anybody"
        return json_response({"type": "user", "username": name, "name": name, "github_url": None})

    @router.get(
        "/v1/hardware",
        summary="What models run on: one kind",
        responses=openapi.answers(HardwareList, *_FAILURES, shape=words.ReplicateError),
    )
    async def hardware() -> Response:
        sku = "gpu" if context.gpu_available else "cpu"
        return json_response([{"name": sku.upper(), "sku": sku}])

    @router.get("/v1/webhooks/default/secret", include_in_schema=False)  # it lists what is served
    async def webhook_secret() -> Response:
        # One secret signs for all callers: who was told it could write webhooks to the others.
        raise AccessDenied("The secret of webhooks is WEBHOOK_SECRET, and not told here; ask the operator for it.")

    _add_upload(router, context)
    _add_uploads(router)


def _add_upload(router: Door, context: ServerContext) -> None:
    created: dict[int | str, dict[str, Any]] = {201: openapi.of(File, "The file.")}
    form = openapi.takes_form({"content": {"type": "string", "format": "binary"}}, "content")

    @router.post(
        "/v1/files",
        summary="A file as an input",
        status_code=201,
        responses=created | openapi.refusals(400, 401, 403, 413, 415, 429, 500, shape=words.ReplicateError),
        openapi_extra=form,
        description="`urls.get` is the file itself, as a data: URI: it goes with the input, and nothing is kept here.",
    )
    async def upload(request: Request) -> Response:
        sent = await read_form(request, context.incoming)
        sent.check_files(("content",))
        if len(files := sent.files.get("content", [])) != 1:
            raise InvalidRequest("content is required: one file.", field="content")
        metadata = sent.values(but=("content", "type", "filename")).get("metadata")
        kind = (sent.types.get("content") or [""])[0] or "application/octet-stream"
        body = await context.operations.pools.decoding.run(_encode_upload, files[0], kind, metadata)
        return json_response(body, 201)


def _add_uploads(router: Door) -> None:
    @router.get(
        "/v1/files",
        summary="The uploads that are kept: none",
        responses=openapi.answers(Files, *_FAILURES, shape=words.ReplicateError),
    )
    async def files() -> Response:
        return json_response({"next": None, "previous": None, "results": []})

    async def file(id: str) -> Response:
        raise JobNotFound("Uploads are not kept here: urls.get of an upload is the file itself.", field="id")

    for method, name in (("GET", "file"), ("DELETE", "delete_file")):
        router.add(
            "/v1/files/{id}",
            file,
            methods=[method],
            name=name,
            summary="Nothing: uploads are not kept",
            responses=openapi.refusals(401, 403, 404, 500, shape=words.ReplicateError),
        )


def _encode_upload(data: bytes, content_type: str, metadata: JsonValue) -> dict[str, JsonValue]:
    """Write an upload. What it can be found by again is the file itself, as a data: URI."""
    digest = hashlib.sha256(data).hexdigest()
    return {
        "id": digest[:32],
        "name": "file",
        "content_type": content_type,
        "size": len(data),
        "etag": digest,
        "checksums": {"sha256": digest},
        "metadata": metadata if isinstance(metadata, dict) else {},
        "created_at": words.now(),
        "expires_at": None,
        "urls": {"get": f"data:{content_type};base64,{to_base64(data)}"},
    }
