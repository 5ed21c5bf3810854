"""The HTTP server: the doors, put into one application."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from worker import __version__
from worker.transport.web import (
    a1111,
    access,
    admin,
    edit,
    errors,
    events,
    health,
    hf_inference,
    jobs,
    metrics,
    models,
    openai_images,
    openapi,
    page,
    pages,
    recipes,
    replicate,
    run,
    runpod_queue,
    usage,
    versions,
)
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.layers import HeadAsGet, Prefixed, Turnstile

# Each door is a file; a new one is a line here.
DOORS: tuple[Callable[[ServerContext], Door], ...] = (
    run.routes,
    runpod_queue.routes,
    jobs.routes,
    access.routes,
    models.routes,
    hf_inference.routes,
    edit.routes,
    replicate.routes,  # before OpenAI's, which takes what is left below /v1/models
    openai_images.routes,
    a1111.routes,
    metrics.routes,
    usage.routes,
    admin.routes,
    recipes.routes,
    versions.routes,
)
# Doors of a browser's own connections, which send no header.
BROWSER_DOORS: tuple[Callable[[ServerContext], Door], ...] = (events.routes,)
# Open to everybody: health checks and pages have no key, and an image is protected by its id, which cannot be guessed.
OPEN_DOORS: tuple[Callable[[ServerContext], Door], ...] = (
    health.routes,
    openai_images.image_routes,
    replicate.file_routes,
    page.routes,  # before the other pages, whose files lie beside its own
    pages.routes,
)

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def create_app(context: ServerContext, lifespan: Lifespan = _nothing, cors_origins: Sequence[str] = ()) -> FastAPI:
    """Build the application. `lifespan` is entered before the first request and left after the last."""
    with openapi.BUILDING:
        return _application(context, lifespan, cors_origins)


def _application(context: ServerContext, lifespan: Lifespan, cors_origins: Sequence[str]) -> FastAPI:
    @asynccontextmanager
    async def whole(_: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    app = FastAPI(
        title="Universal Image Model Worker",
        version=__version__,
        lifespan=whole,
        docs_url=None,  # a page of its own (pages.py): the framework's loads its scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # a page of its own too: what is checked of every request is checked there
        root_path_in_servers=False,
        dependencies=[Depends(context.authenticator.check_host)],
    )
    for door in DOORS:
        door(context).open(app.router, [Depends(context.authenticator.admit)])
    for door in BROWSER_DOORS:
        door(context).open(app.router, [Depends(context.authenticator.admit_browser)])
    for door in OPEN_DOORS:
        door(context).open(app.router, [])
    errors.install(app)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "X-Seed", "X-Mask", "X-Warnings"],
        )
    app.add_middleware(Turnstile, open_to=health.PATHS)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Prefixed, prefix=urlsplit(context.public_url or "").path)
    app.add_middleware(errors.Boundary, answered=context.metrics.answered)
    openapi.install(app, context.public_url)
    return app
