"""The server's readiness for work: for people, for load balancers, for orchestrators."""

from fastapi.responses import Response

from worker.transport.web import openapi
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.wire.introspection import encode_status

PATHS = ("/health", "/ping", "/ready")


def routes(context: ServerContext) -> Door:
    """Return the routes of GET /health, /ping and /ready."""
    router = Door(tags=["health"])

    def readiness(status: int) -> Response:
        state = context.state()
        reason = " ".join(context.operations.readiness.problems())
        return json_response({"status": state} | ({"reason": reason} if reason else {}), status)

    @router.get("/health", summary="What this server is doing", responses=openapi.answers(openapi.Health, 503))
    async def health() -> Response:
        state = context.state()
        body = encode_status(context.operations.status()) | {"status": state, "gpu_available": context.gpu_available}
        body["volume_id"] = context.operations.versions.versions.history.volume_id
        # A server without one of its models still serves the others: only a lost one must be replaced.
        return json_response(body, 503 if state == "lost" else 200)

    @router.get(
        "/ping",
        summary="200 when ready, 204 while starting, as RunPod's load balancer asks",
        responses=openapi.answers(openapi.Ping, 503) | {204: {"description": "Starting."}},
    )
    async def ping() -> Response:
        state = context.state()
        return Response(status_code=204) if state == "starting" else readiness(200 if state == "ready" else 503)

    @router.get("/ready", summary="200 when ready, else 503", responses=openapi.answers(openapi.Ping, 503))
    async def ready() -> Response:
        return readiness(200 if context.state() == "ready" else 503)

    return router
