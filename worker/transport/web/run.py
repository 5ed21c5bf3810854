"""POST /run and /runsync: a request in, the finished image back on the same connection."""

from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response

from worker.transport.web import openapi
from worker.transport.web.context import WAITED_FOR, ServerContext, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.runpod_schema import SubmittedJob, decode_job, encode_run

_SUMMARY = "Draw, and answer when done"
_TEXT = "The body is a job's input, bare or as `input`. The job is cancelled when its caller hangs up."


def routes(context: ServerContext) -> Door:
    """Return the one door under both of its names."""
    router = Door(tags=["run"])
    responses = openapi.answers(openapi.Ran, *openapi.ASKING, 409)
    body = openapi.takes(openapi.RUN_SCHEMA, image=openapi.GENERATION, wrapped={"input": openapi.GENERATION})

    @router.post("/run", summary=_SUMMARY, description=_TEXT, responses=responses, openapi_extra=body)
    @router.post("/runsync", summary=_SUMMARY, description=_TEXT, responses=responses, openapi_extra=body)
    async def run(request: Request) -> Response:
        payload = await read_json(request, context.incoming)
        wrapped = isinstance(payload, dict) and payload.get("input") is not None
        job = decode_job(payload) if wrapped else SubmittedJob(payload, WAITED_FOR)
        context.webhooks.check(job.options.webhook)
        return json_response(encode_run(await context.answer(request, job.payload, replace(job.options, kept=False))))

    return router
