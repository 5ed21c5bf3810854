"""Facts about models: the registry, schemas, detection and plans. Nothing here loads a weight."""

from fastapi import Request
from fastapi.responses import Response
from pydantic import JsonValue

from worker.core.answer import ModelList
from worker.core.errors import InvalidRequest, ModelNotFound
from worker.transport.web import openapi
from worker.transport.web.context import ServerContext, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import error_response, json_response
from worker.wire.introspection import encode_model, encode_models
from worker.wire.result import encode_answer


def routes(context: ServerContext) -> Door:
    """Return the routes of GET /models…, POST /inspect and /plan."""
    router = Door(tags=["models"])
    finding = openapi.answers(openapi.AnyObject, 400, 401, 403, 404, 500, 502, 504)
    asking = openapi.answers(openapi.AnyObject, *openapi.ASKING)
    names_model = openapi.takes(openapi.MODEL_SCHEMA, default={}, named={"model": "demo"})

    async def perform(request: Request, action: str, fields: JsonValue) -> Response:
        if not isinstance(fields, dict) or "action" in fields:
            raise InvalidRequest('The body must be {"model": "…"} or {}.', field="body")
        return json_response(encode_answer(await context.ask(request, {**fields, "action": action})))

    @router.get("/models", summary="Every model of models.yaml", responses=openapi.answers(openapi.Models, 401, 500))
    async def models(request: Request) -> Response:
        return json_response(encode_models(ModelList(await context.models(request))))

    # Before the next one, whose path would take it in.
    @router.get("/models/{id:path}/schema", summary="The JSON Schema of a request for a model", responses=finding)
    async def schema(id: str, request: Request) -> Response:
        try:
            return await perform(request, "schema", {"model": id})
        except ModelNotFound as error:
            return error_response(error, 404)

    @router.get("/models/{id:path}", summary="One model of models.yaml", responses=finding)
    async def model(id: str, request: Request) -> Response:
        for summary in await context.models(request):
            if summary.is_named(id):
                return json_response(encode_model(summary))
        return error_response(ModelNotFound("models.yaml has no such model; GET /models lists them.", field="id"), 404)

    @router.post(
        "/inspect", summary="What a model is, and how that is known", responses=asking, openapi_extra=names_model
    )
    async def inspect(request: Request) -> Response:
        return await perform(request, "inspect", await read_json(request, context.incoming))

    @router.post("/plan", summary="What running a model would take", responses=asking, openapi_extra=names_model)
    async def plan(request: Request) -> Response:
        return await perform(request, "plan", await read_json(request, context.incoming))

    return router
