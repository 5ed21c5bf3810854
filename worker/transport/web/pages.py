"""The pages for people: what this server is, and its API to read and to try. They need nothing from elsewhere."""

import gzip
import json
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from worker import __version__
from worker.transport.web import openapi
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import json_response

_FOLDER = Path(__file__).with_name("ui")
_SERVED: Mapping[str, str] = {
    "docs.js": "text/javascript",
    "index.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
# Scripts come from here alone, whatever stands in a text that a page shows. Swagger UI styles by attributes, shows
# icons from data: addresses, and calls the address that openapi.json names.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src *; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_CACHED = {"Cache-Control": "public, max-age=3600"}
_LINKS = {
    **{name: name for name in ("docs", "health", "ready", "models", "run")},
    "openapi": "openapi.json",
    "huggingface": "diffusers/generate",
    "openai": "v1",
    "runpod": "v2/local",
}

_UI_LINK = (
    '<p><a class="go" href="ui">Open the page</a>: generate, compare, keep; for operators queue and models.</p>\n'
)


def routes(context: ServerContext) -> Door:
    """Return the routes of GET /, /docs and what these show."""
    router = Door(tags=["health"])
    page = Template((_FOLDER / "index.html").read_text("utf-8"))

    @router.get(
        "/",
        summary="A page for browsers, links for programs",
        responses={200: openapi.or_page(openapi.Links)},
    )
    async def index(request: Request) -> Response:
        address = context.address(request)
        varying = {"Vary": "Accept"}
        if "text/html" not in request.headers.get("accept", ""):
            shown = _LINKS | ({"ui": "ui"} if context.shows_page else {})
            links = {name: f"{address}/{path}" for name, path in shown.items()}
            body = {"name": "Universal Image Model Worker", "version": __version__, "links": links}
            return json_response(body, headers=varying)
        filled = page.substitute(
            version=escape(__version__),
            ui=_UI_LINK if context.shows_page else "",
            curl=escape(_curl(context, address)),
            key_note=" (asks for an API key)" if context.authenticator.asks_for_key else "",
        )
        return Response(filled, headers=_PAGE_HEADERS | varying, media_type="text/html")

    @router.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        return json_response(await context.operations.pools.own.run(request.app.openapi))

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response((_FOLDER / "docs.html").read_bytes(), headers=_PAGE_HEADERS, media_type="text/html")

    @router.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response((_FOLDER / "favicon.ico").read_bytes(), headers=_CACHED, media_type="image/x-icon")

    @router.get("/ui/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in _SERVED:
            raise HTTPException(404)
        path, headers = _FOLDER / name, _CACHED | {"X-Content-Type-Options": "nosniff"}
        if path.exists():
            return Response(path.read_bytes(), headers=headers, media_type=_SERVED[name])
        packed = path.with_name(f"{name}.gz").read_bytes()
        headers |= {"Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=_SERVED[name])
        return Response(gzip.decompress(packed), headers=headers, media_type=_SERVED[name])

    return router


def _curl(context: ServerContext, address: str) -> str:
    """Return one line that saves an image as a file. With keys it tells nobody which model is the default one."""
    asks = context.authenticator.asks_for_key
    model = "MODEL" if asks else quote(context.operations.introspection.default_model())
    words = ["curl", f"{address}/diffusers/generate/{model}", "-H", "Content-Type: application/json"]
    words += ["-H", "Authorization: Bearer YOUR_KEY"] if asks else []
    return shlex.join([*words, "-d", json.dumps({"inputs": "a red apple"}), "-o", "apple.png"])
