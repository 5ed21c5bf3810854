"""GET /jobs: what a caller has handed in and not yet lost, so that a page that was closed finds it again."""

import time
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import JsonValue

from worker.core.answer import Answer
from worker.core.request import GenerationRequest
from worker.core.training import Trained, TrainingRequest
from worker.service.jobs.record import JobRecord
from worker.service.jobs.store import ANYBODY
from worker.transport.web import openapi
from worker.transport.web.auth import ALL_CALLERS, caller_of, check_admin
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.runpod_schema import encode_status
from worker.wire.result import encode_progress

_PROMPT_CHARS = 200
_MODEL_CHARS = 512


def routes(context: ServerContext) -> Door:
    """Return the route of GET /jobs."""
    router = Door(tags=["RunPod's API"])

    @router.get(
        "/jobs",
        summary="A caller's own jobs, the newest first; with an admin key everybody's",
        responses=openapi.answers(openapi.ListedJobs, 400, 401, 403, 500),
    )
    async def jobs(
        request: Request,
        all: Annotated[bool, Query(description="Jobs of all callers, without their prompts.")] = False,
        limit: Annotated[int, Query(ge=1, le=1_000, description="How many at most.")] = 100,
    ) -> Response:
        if all:
            check_admin(request, ALL_CALLERS)
            listed = [_shown(record) | {"caller": record.caller} for record in context.job_store.listed(ANYBODY)]
        else:
            own = context.job_store.listed(caller_of(request).name)
            listed = [_shown(record) | _words(record) for record in own]
        return json_response({"jobs": listed[:limit]})

    return router


def _shown(record: JobRecord) -> dict[str, JsonValue]:
    """Write a job without its words and its files."""
    named = record.answer.model if isinstance(record.answer, Answer) else record.job.named_model
    shown = encode_status(record) | {
        "action": record.job.action,
        "model": named[:_MODEL_CHARS] if isinstance(named, str) else None,
        "age_s": round(time.monotonic() - record.created_at, 3),
        "delayTime": record.delay_ms,
        "executionTime": record.execution_ms,
    }
    if record.error is not None:
        shown["code"] = record.error.code
    elif record.progress is not None and not record.over:
        shown["progress"] = encode_progress(record.progress)
    return shown


def _words(record: JobRecord) -> dict[str, JsonValue]:
    """Write what only the caller whose job it is may read."""
    request = record.job.request
    source = record.answer if isinstance(record.answer, Answer) else request
    prompt = source.prompt if isinstance(source, Answer | GenerationRequest) else None
    words: dict[str, JsonValue] = {"prompt": prompt[:_PROMPT_CHARS] if prompt else prompt}
    named = record.answer if isinstance(record.answer, Trained) else request
    if isinstance(named, Trained | TrainingRequest):
        words["name"] = named.name
    return words if record.error is None else words | {"error": record.error.message}
