"""GET /ui: the page to work with, for people. Static files from this folder; all that it shows it asks the API for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door

_FOLDER = Path(__file__).parent / "ui" / "app"
_TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
# Scripts and styles come from files here alone, and nothing is asked for elsewhere: a prompt, a model's name or a
# result that somebody made for the purpose has no way to run, to send or to load. No script may write HTML at all.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for again each time, and sent again only after a new version.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    media_type: str
    tag: str


def routes(context: ServerContext) -> Door:
    """Return the routes of GET /ui and its files; none where the operator turned the page off."""
    router = Door(include_in_schema=False)
    if not context.shows_page:
        return router
    files = {path.name: _read(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}

    @router.get("/ui")
    async def page(request: Request) -> Response:
        return _answer(files["index.html"], request)

    @router.get("/ui/")
    async def slash() -> Response:
        return RedirectResponse("../ui", 307)  # the page's own addresses are read from here

    @router.get("/ui/app/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files or name == "index.html":
            raise HTTPException(404)
        return _answer(files[name], request)

    return router


def _read(path: Path) -> _File:
    data = path.read_bytes()
    return _File(data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _answer(file: _File, request: Request) -> Response:
    headers = dict(_HEADERS) | {"ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)
