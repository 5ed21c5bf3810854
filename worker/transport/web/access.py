"""POST /tokens: access for a browser's EventSource and WebSocket, which send no header."""

from fastapi import Request
from fastapi.responses import Response

from worker.transport.web import openapi
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.transport.web.tokens import LIFE_S


def routes(context: ServerContext) -> Door:
    """Return the route of POST /tokens."""
    router = Door(tags=["events"])

    @router.post(
        "/tokens",
        summary="A token of a few minutes, to open WS /ws?token= and GET /events/{id}?token= with",
        responses=openapi.answers(openapi.Token, 401, 403, 500),
    )
    async def tokens(request: Request) -> Response:
        token = context.authenticator.issue_token(request)
        return json_response({"token": token, "expires_in": LIFE_S}, headers={"Cache-Control": "no-store"})

    return router
