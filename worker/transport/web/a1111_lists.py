"""AUTOMATIC1111's lists and settings: what can be named in a payload, and each caller's own choice of a model."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import JsonValue

from worker.catalog.samplers import SAMPLERS, names_of
from worker.catalog.schedulers import SCHEDULES
from worker.core.answer import ModelSummary
from worker.core.errors import InvalidRequest, ModelNotFound, ParameterOutOfRange, UnknownParameter
from worker.core.model import Task
from worker.media.decoding import MAX_BYTES
from worker.media.images import inline_bytes
from worker.media.retouching import text_in
from worker.transport.web import a1111_schema as words
from worker.transport.web import openapi
from worker.transport.web.a1111_callers import A1111Caller, A1111Callers
from worker.transport.web.auth import caller_of
from worker.transport.web.context import ServerContext, read_json
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response
from worker.wire.foreign.a1111 import named

_FAILURES = (401, 500)
# What a caller may set for themselves, with what counts until they do. The model is the worker's own by default.
_OPTIONS: dict[str, JsonValue] = {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_format": "png"}
_MODEL = "sd_model_checkpoint"
_LABELS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC bh2",
    "sa_solver": "SA Solver",
}
_LATENT = ("Latent", "None")  # of hires fix, without a model; both enlarge the image
# Lists that are empty here, and asked for by clients as they start.
_EMPTY = {"prompt-styles": "Styles", "face-restorers": "Face restorers", "script-info": "Scripts"}
# Lists that its clients have read anew; here each is always that of now.
_ALWAYS_NEW = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
_BY_ITSELF = "the worker loads a model when a request names it, and makes room by itself; leave it out"
_TRAINING = "what is trained here is a LoRA or an embedding, by the action train of /run; docs/training.md shows it"
_OPERATORS = "this server is stopped and started by its operator; leave it out"
# The other routes of that API: refused, with what to do in place of each.
_REFUSED = {
    "POST interrogate": "no model here describes images; ask a vision model, or read the file's own parameters with "
    "/sdapi/v1/png-info",
    "POST extra-batch-images": "send each image to /sdapi/v1/extra-single-image",
    "GET realesrgan-models": "/sdapi/v1/upscalers lists all that there are",
    "GET cmd-flags": "this server has no such flags; /sdapi/v1/options has the caller's settings",
    "GET memory": "/metrics tells how much each model took",
    "GET extensions": "there are none; /sdapi/v1/scripts has what alwayson_scripts may name",
    "POST unload-checkpoint": _BY_ITSELF,
    "POST reload-checkpoint": _BY_ITSELF,
    "POST create/embedding": _TRAINING,
    "POST create/hypernetwork": _TRAINING,
    "POST train/embedding": _TRAINING,
    "POST train/hypernetwork": _TRAINING,
    "POST server-kill": _OPERATORS,
    "POST server-restart": _OPERATORS,
    "POST server-stop": _OPERATORS,
}


def add_routes(router: Door, context: ServerContext, callers: A1111Callers) -> None:
    """Add the routes of lists, settings and files."""
    _add_options(router, context, callers)
    _add_models(router, context)
    _add_names(router, context)
    _add_readers(router, context)
    _add_refusals(router)


def _add_options(router: Door, context: ServerContext, callers: A1111Callers) -> None:
    @router.get(
        "/options",
        summary="The caller's settings",
        responses=openapi.answers(words.Named, *_FAILURES, shape=words.A1111Error),
    )
    async def options(request: Request) -> Response:
        return json_response(_options(context, callers.of(request)))

    @router.post(
        "/options",
        summary="Choose a model, for oneself",
        responses=openapi.answers(words.Nothing, 400, 401, 403, 413, 415, 500, shape=words.A1111Error),
        openapi_extra=openapi.takes(
            {"type": "object", "additionalProperties": True, "properties": {_MODEL: {"type": "string"}}},
            model={_MODEL: "demo"},
        ),
        description="`sd_model_checkpoint`, `sd_vae`, `CLIP_stop_at_last_layers` and `samples_format`, of the caller.",
    )
    async def set_options(request: Request) -> Response:
        payload = await read_json(request, context.incoming)
        if not isinstance(payload, dict):
            raise InvalidRequest(f'The body must be an object, as {{"{_MODEL}": "…"}}.', field="body")
        caller = callers.of(request)
        changes = {name: value for name, value in payload.items() if name in _OPTIONS or name == _MODEL}
        if (model := changes.get(_MODEL)) is not None:
            changes[_MODEL] = _model(context, request, model)
        for name, value in changes.items():
            if name != _MODEL and (not isinstance(value, str | int) or len(str(value)) > 512):
                raise ParameterOutOfRange(f"{name} must be a name or a number.", field=name)
        caller.options |= changes
        return json_response(None)


def _options(context: ServerContext, caller: A1111Caller) -> dict[str, JsonValue]:
    model = caller.options.get(_MODEL) or context.operations.introspection.default_model()
    return {**_OPTIONS, **caller.options, _MODEL: model, "sd_checkpoint_hash": ""}


def _model(context: ServerContext, request: Request, title: JsonValue) -> str:
    name = named(title)
    for model in context.operations.served_models(caller_of(request).name):
        if isinstance(name, str) and model.is_named(name):
            return model.id
    raise ModelNotFound(
        f"{_MODEL} must be one of /sdapi/v1/sd-models; other models are named in override_settings.", field=_MODEL
    )


def _add_models(router: Door, context: ServerContext) -> None:
    async def served(request: Request, *, upscaling: bool) -> list[ModelSummary]:
        models = await context.models(request)
        return [model for model in models if model.served and (model.tasks == (Task.UPSCALING,)) == upscaling]

    async def models(request: Request) -> list[JsonValue]:
        return [
            {"title": it.id, "model_name": it.id, "hash": None, "sha256": None, "filename": it.id, "config": None}
            for it in await served(request, upscaling=False)
        ]

    async def upscalers(request: Request) -> list[JsonValue]:
        return [
            {"name": it.id, "model_name": it.id, "model_path": None, "model_url": None, "scale": 4.0}
            for it in await served(request, upscaling=True)
        ]

    async def nothing(request: Request) -> list[JsonValue]:
        return []

    _add_list(router, "sd-models", "Models", models)
    _add_list(router, "upscalers", "Upscalers", upscalers)
    _add_list(router, "sd-vae", "VAEs: they are named by reference", nothing)
    for path, summary in _EMPTY.items():
        _add_list(router, path, f"{summary}: there are none here", nothing)

    async def refresh(request: Request) -> Response:
        return json_response(None)

    for path in _ALWAYS_NEW:
        router.add(
            f"/{path}",
            refresh,
            methods=["POST"],
            name=path,
            summary="Nothing: the list is always that of now",
            responses=openapi.answers(words.Nothing, 401, 403, 500, shape=words.A1111Error),
        )


def _add_list(router: Door, path: str, summary: str, entries: Callable[[Request], Awaitable[list[JsonValue]]]) -> None:
    responses = openapi.answers(words.Listed, *_FAILURES, 429, shape=words.A1111Error)

    async def listed(request: Request) -> Response:
        return json_response(await entries(request))

    router.add(f"/{path}", listed, summary=summary, responses=responses, name=path)


def _add_names(router: Door, context: ServerContext) -> None:
    introspection = context.operations.introspection

    async def samplers(request: Request) -> list[JsonValue]:
        return [{"name": _label(names_of(each)), "aliases": [*names_of(each)], "options": {}} for each in SAMPLERS]

    async def schedulers(request: Request) -> list[JsonValue]:
        return [
            {"name": name, "label": name.replace("_", " ").title(), "aliases": [], "default_rho": -1.0,
             "need_inner_model": False}
            for name in ("automatic", *SCHEDULES)
        ]  # fmt: skip

    async def loras(request: Request) -> list[JsonValue]:
        return words.encode_names(await introspection.adapters("lora"))

    async def hypernetworks(request: Request) -> list[JsonValue]:
        return [{"name": name, "path": None} for name in await introspection.adapters("hypernet")]

    async def latent(request: Request) -> list[JsonValue]:
        return [{"name": name} for name in _LATENT]

    _add_list(router, "samplers", "Samplers", samplers)
    _add_list(router, "schedulers", "Schedules", schedulers)
    _add_list(router, "loras", "LoRAs that a prompt can name", loras)
    _add_list(router, "hypernetworks", "Hypernetworks that a prompt can name", hypernetworks)
    _add_list(router, "latent-upscale-modes", "Ways of hires fix without an upscaler", latent)

    @router.get(
        "/embeddings",
        summary="Embeddings that a prompt can name",
        responses=openapi.answers(words.Named, *_FAILURES, shape=words.A1111Error),
    )
    async def embeddings(request: Request) -> Response:
        facts: JsonValue = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
        return json_response({"loaded": dict.fromkeys(await introspection.adapters("embedding"), facts), "skipped": {}})

    @router.get(
        "/scripts",
        summary="Extensions that are read in alwayson_scripts",
        responses=openapi.answers(words.Named, *_FAILURES, shape=words.A1111Error),
    )
    async def scripts(request: Request) -> Response:
        return json_response({"txt2img": ["controlnet"], "img2img": ["controlnet"]})


def _label(names: tuple[str, ...]) -> str:
    """Return a sampler's name as that web UI writes it, by which other programs choose it."""
    spoken = next((name for name in names if "++" in name), names[0])
    return _LABELS.get(spoken) or spoken.upper().replace("HEUN", "Heun")


def _add_readers(router: Door, context: ServerContext) -> None:
    image: dict[str, Any] = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}}
    failures = (400, 401, 403, 413, 415, 500, 504)

    @router.post(
        "/png-info",
        summary="What a file says of its origin",
        responses=openapi.answers(words.PngInfo, *failures, shape=words.A1111Error),
        openapi_extra=openapi.takes(image, image={"image": "iVBORw0KGgo…"}),
    )
    async def png_info(request: Request) -> Response:
        payload = await read_json(request, context.incoming)
        sent = payload.get("image") if isinstance(payload, dict) else None
        if not isinstance(sent, str) or not sent:
            raise InvalidRequest("image is required: a file as base64.", field="image")
        texts = await context.operations.pools.decoding.run(_texts, sent)
        text = texts.get("parameters", "")
        items: dict[str, JsonValue] = {**texts}
        return json_response({"info": text, "items": items, "parameters": words.parse_infotext(text)})


def _add_refusals(router: Door) -> None:
    for route, instead in _REFUSED.items():
        method, _, path = route.partition(" ")
        router.add(
            f"/{path}",
            _refusal(path, instead),
            methods=[method],
            name=path,
            include_in_schema=False,  # it lists what is served
        )


def _refusal(path: str, instead: str) -> Callable[[], Awaitable[Response]]:
    async def refused() -> Response:
        raise UnknownParameter(f"{path} is not served: {instead}.", field=path)

    return refused


def _texts(sent: str) -> dict[str, str]:
    return text_in(inline_bytes(sent, "image", MAX_BYTES), "image")
