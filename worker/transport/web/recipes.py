"""Recipes for the operator: the text of one, what the worker's checks say of another, and the place to save it."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from worker.core.errors import InvalidRequest
from worker.service.recipes.shelf import RecipeShelf, Verdict
from worker.transport.web import openapi
from worker.transport.web.admin import read_body, takes
from worker.transport.web.auth import check_admin
from worker.transport.web.context import ServerContext, unless_gone
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response

_REFUSED = "The recipes of this worker are for one of its admin keys only."
_MAX_CHARS = 100_000


class _Draft(BaseModel):
    """A recipe that is to be checked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=64, description="The model that it is to be: a-z, 0-9, - and _.")]
    text: Annotated[str, Field(max_length=_MAX_CHARS, description="Its YAML.")]


class _Saved(_Draft):
    """One that is to be saved."""

    replace: bool = Field(default=False, description="Whether it may take the place of another one.")


def _admin(request: Request) -> None:
    check_admin(request, _REFUSED)


def routes(context: ServerContext) -> Door:
    """Return the routes below /admin/recipes."""
    router = Door(prefix="/admin/recipes", tags=["admin"], dependencies=[Depends(_admin)])
    asking = openapi.answers(openapi.AnyObject, *openapi.ASKING)

    def shelf() -> RecipeShelf:
        if context.recipes is None:
            raise InvalidRequest("There are no recipes here.", field="path")
        return context.recipes

    @router.get("/{name}", summary="The text of a recipe", responses=asking)
    async def text(name: str) -> Response:
        return json_response({"name": name, "text": await shelf().text(name)})

    @router.post("/check", summary="Check a recipe against its models", responses=asking, openapi_extra=takes(_Draft))
    async def check(request: Request) -> Response:
        body = await read_body(_Draft, request, context.incoming)
        return json_response(_told(await unless_gone(request, shelf().review(body.name, body.text))))

    @router.post(
        "/save", summary="Save a recipe that passes every check", responses=asking, openapi_extra=takes(_Saved)
    )
    async def save(request: Request) -> Response:
        body = await read_body(_Saved, request, context.incoming)
        return json_response(_told(await shelf().save(body.name, body.text, replaces=body.replace)))

    return router


def _told(verdict: Verdict) -> dict[str, JsonValue]:
    recipe = verdict.recipe
    if recipe is None:
        return {"right": False, "line": verdict.line, "problem": verdict.problem}
    told: dict[str, JsonValue] = {"right": True, "steps": len(recipe.steps), "models": [*recipe.models]}
    return told | {"saved": verdict.saved, "served": verdict.served}
