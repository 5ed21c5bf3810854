"""Versions of models, for the operator: those there are, what changed, how they compare; promote, rollback, split.

Each path is an action, whose fields are read where those of every action are.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import JsonValue

from worker.core.errors import InvalidRequest
from worker.core.job_input import VERSION_FIELDS, VersionAction
from worker.core.version import MAX_WHY
from worker.transport.web import openapi
from worker.transport.web.auth import check_admin
from worker.transport.web.context import ServerContext, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.wire.result import encode_answer

_REFUSED = "The versions of models are for one of this worker's admin keys only."
_QUESTIONS: tuple[tuple[str, VersionAction, str], ...] = (
    ("", "versions", "The versions of every model that has any"),
    ("/history", "history", "Who changed what is served, when and why; and what was served then"),
    ("/report", "report", "How the versions of a model compare by their jobs, and by pairs"),
    ("/pairs", "pairs", "The next pair of images to choose between, without the names of their versions"),
)
_CHANGES: tuple[tuple[VersionAction, str], ...] = (
    ("promote", "Have an alias name another version"),
    ("rollback", "Have @stable name the version that it named before"),
    ("split", "Share a model's requests out between versions"),
    ("choose", "Say which image of a pair is better; the answer is the next pair"),
)
# As VersionRequest has them; written out, because a schema made at start costs every start.
_FIELDS: Mapping[str, dict[str, Any]] = {
    "model": {"type": "string", "minLength": 1, "maxLength": 512, "description": "A model of models.yaml."},
    "version": {"type": "string", "minLength": 1, "maxLength": 32, "description": "v2, candidate, or entry."},
    "alias": {"type": "string", "maxLength": 32, "default": "stable", "description": "stable or candidate."},
    "arms": {"type": "object", "additionalProperties": {"type": "number"}, "description": "Shares by name."},
    "halt": {
        "type": "object",
        "properties": {
            "errors": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "slower": {"type": ["number", "null"], "exclusiveMinimum": 1, "maximum": 1_000},
            "jobs": {"type": "integer", "minimum": 2, "maximum": 1_000},
        },
        "additionalProperties": False,
    },
    "paired": {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "default": 0,
        "description": "How many of 100 requests another arm generates too.",
    },
    "pair": {"type": "string", "minLength": 1, "maxLength": 32, "description": "As /admin/versions/pairs names it."},
    "choice": {"type": "string", "enum": ["left", "right", "equal"]},
    "why": {"type": "string", "maxLength": MAX_WHY, "default": "", "description": "For those who read the history."},
    "at": {"type": "string", "maxLength": 64, "description": "A time, as 2026-11-30T14:03 or 14:03, UTC."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100},
    "days": {"type": "integer", "minimum": 1, "maximum": 3_660, "default": 7},
}


def _admin(request: Request) -> None:
    check_admin(request, _REFUSED)


def routes(context: ServerContext) -> Door:
    """Return the routes below /admin/versions."""
    router = Door(prefix="/admin/versions", tags=["admin"], dependencies=[Depends(_admin)])
    responses = openapi.answers(openapi.AnyObject, *openapi.ASKING)

    async def told(request: Request, fields: dict[str, JsonValue]) -> Response:
        return json_response(encode_answer(await context.ask(request, fields)))

    def add(path: str, action: VersionAction, summary: str, *, changes: bool) -> None:
        async def question(request: Request) -> Response:
            return await told(request, {**request.query_params, "action": action})

        async def change(request: Request) -> Response:
            body = await read_json(request, context.incoming)
            if not isinstance(body, dict) or "action" in body:
                raise InvalidRequest("The body must be a JSON object, without an action.", field="body")
            return await told(request, {**body, "action": action})

        router.add(
            path,
            change if changes else question,
            methods=["POST" if changes else "GET"],
            summary=summary,
            responses=responses,
            openapi_extra=_takes(action) if changes else {"parameters": _parameters(action)},
        )

    for path, action, summary in _QUESTIONS:
        add(path, action, summary, changes=False)
    for action, summary in _CHANGES:
        add(f"/{action}", action, summary, changes=True)
    return router


def _properties(action: VersionAction) -> dict[str, Any]:
    return {name: _FIELDS[name] for name in VERSION_FIELDS[action]}


def _parameters(action: VersionAction) -> list[dict[str, Any]]:
    """Document the query of a question."""
    needed = {"model"} if action in ("report", "pairs") else set()
    return [
        {"name": name, "in": "query", "required": name in needed, "schema": schema}
        for name, schema in _properties(action).items()
    ]


def _takes(action: VersionAction) -> dict[str, Any]:
    """Document the body of a change."""
    required = {"promote": ["model", "version"], "choose": ["model", "pair", "choice"]}.get(action, ["model"])
    return openapi.takes(
        {"type": "object", "properties": _properties(action), "required": required, "additionalProperties": False}
    )
