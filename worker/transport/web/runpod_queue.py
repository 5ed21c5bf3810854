"""RunPod's own API below /v2/{endpoint}: jobs that are submitted now and asked for later, at any endpoint's name."""

from typing import Annotated

from fastapi import Path, Query, Request
from fastapi.responses import Response

from worker.service.jobs.record import JobRecord
from worker.transport.web import openapi
from worker.transport.web.auth import check_admin
from worker.transport.web.context import ServerContext, job_id, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.layers import is_head
from worker.transport.web.runpod_schema import (
    Streams,
    check_retry,
    decode_job,
    encode_health,
    encode_job,
    encode_status,
)

Endpoint = Annotated[str, Path(description="Any name: this server is one endpoint.")]
Id = Annotated[str, Path(description="The id that /run answered.")]
Wait = Annotated[int, Query(ge=1_000, le=300_000, description="Milliseconds to wait for the result.")]


def routes(context: ServerContext) -> Door:
    """Return the routes that RunPod's clients call."""
    router = Door(prefix="/v2/{endpoint}", tags=["RunPod's API"])
    takes_job = openapi.takes(openapi.JOB_SCHEMA, image={"input": openapi.GENERATION})
    asking = openapi.answers(openapi.Job, 400, 401, 403, 413, 415, 429, 500, 503)

    async def submit(request: Request, prefix: str = "") -> JobRecord:
        job = decode_job(await read_json(request, context.incoming))
        context.webhooks.check(job.options.webhook)
        return context.submit(request, job.payload, f"{prefix}{job_id(request)}{context.mark or '-u1'}", job.options)

    @router.post("/run", summary="Hand a job in", responses=asking, openapi_extra=takes_job)
    async def run(endpoint: Endpoint, request: Request) -> Response:
        record = await submit(request)
        return json_response(encode_status(record))

    @router.post(
        "/runsync", summary="Hand a job in, and wait for it a while", responses=asking, openapi_extra=takes_job
    )
    async def runsync(endpoint: Endpoint, request: Request, wait: Wait = 90_000) -> Response:
        record = await submit(request, "sync-")
        await record.wait(wait / 1000)
        return json_response(encode_job(record))

    _add_job_routes(router, context)

    @router.post(
        "/purge-queue", summary="Cancel every job that waits", responses=openapi.answers(openapi.Purged, 401, 403, 500)
    )
    async def purge_queue(endpoint: Endpoint, request: Request) -> Response:
        check_admin(request, "Emptying the queue needs one of this worker's admin keys.")
        return json_response({"removed": context.job_store.purge(), "status": "completed"})

    @router.get(
        "/health", summary="How many jobs there are", responses=openapi.answers(openapi.EndpointHealth, 401, 500)
    )
    async def health(endpoint: Endpoint) -> Response:
        return json_response(encode_health(context.job_store.counts(), context.state()))

    return router


def _add_job_routes(router: Door, context: ServerContext) -> None:
    """Add the routes that ask for a job, or decide on it."""
    finding = openapi.answers(openapi.Job, 400, 401, 403, 404, 500)
    trying = finding | openapi.refusals(429, 503)
    streams = Streams()

    @router.get("/status/{id}", summary="Where a job stands, and its result", responses=finding)
    async def status(endpoint: Endpoint, id: Id, request: Request) -> Response:
        return json_response(encode_job(context.find(request, id)))

    @router.get(
        "/stream/{id}",
        summary="What happened since the last look, and at the end the result",
        responses=openapi.answers(openapi.Chunks, 401, 404, 500),
    )
    async def stream(endpoint: Endpoint, id: Id, request: Request) -> Response:
        record = context.find(request, id)
        if is_head(request.scope):  # what is told once waits for somebody who reads it
            return json_response(encode_status(record))
        return json_response(streams.read(record))

    @router.post("/cancel/{id}", summary="Take a job back; with an admin key anybody's", responses=finding)
    async def cancel(endpoint: Endpoint, id: Id, request: Request) -> Response:
        record = context.find(request, id, admin_finds_all=True)
        context.job_store.cancel(record)
        return json_response(encode_status(record))

    @router.post("/retry/{id}", summary="Run a failed or timed out job again", responses=trying)
    async def retry(endpoint: Endpoint, id: Id, request: Request) -> Response:
        record = context.find(request, id)
        check_retry(record)
        context.job_store.retry(record)
        return json_response(encode_status(record))
