"""The metrics that Prometheus scrapes. Their meaning: docs/observability.md."""

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from worker.transport.web import openapi
from worker.transport.web.auth import ALL_CALLERS, check_admin
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door


def routes(context: ServerContext) -> Door:
    """Return the route of GET /metrics."""
    router = Door(tags=["health"])
    text = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get(
        "/metrics",
        summary="What the server has done, in numbers",
        responses=openapi.refusals(401, 403, 500) | {200: text},
        response_class=Response,
    )
    async def metrics(request: Request) -> Response:
        check_admin(request, ALL_CALLERS)
        return Response(context.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
