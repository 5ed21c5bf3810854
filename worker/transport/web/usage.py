"""The usage logs of all workers that share the volume, added up as `python -m worker usage` prints them."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response

from worker.service.usage.log import By
from worker.transport.web import openapi
from worker.transport.web.auth import ALL_CALLERS, check_admin
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response


def routes(context: ServerContext) -> Door:
    """Return the route of GET /usage."""
    router = Door(tags=["health"])

    @router.get(
        "/usage", summary="What was drawn, added up", responses=openapi.answers(openapi.Usage, 400, 401, 403, 500)
    )
    async def usage(
        request: Request,
        by: Annotated[By, Query(description="What each entry is of.")] = "day",
        days: Annotated[int, Query(ge=1, le=3_660, description="How many days back, today included.")] = 30,
    ) -> Response:
        check_admin(request, ALL_CALLERS)
        since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
        sums = await context.operations.pools.own.run(context.usage_log.sums, since, by)
        return json_response({"by": by, "since": since, "usage": {key: asdict(total) for key, total in sums.items()}})

    return router
