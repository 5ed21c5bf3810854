"""The HTTP server: the doors, put into one application."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from worker import __version__
from worker.transport.web import (
    edit,
    errors,
    events,
    health,
    hf_inference,
    metrics,
    models,
    openai_images,
    openapi,
    run,
    runpod_queue,
    usage,
)
from worker.transport.web.context import ServerContext

# Each door is a file; a new one is a line here.
DOORS: tuple[Callable[[ServerContext], APIRouter], ...] = (
    run.routes,
    runpod_queue.routes,
    events.routes,
    models.routes,
    hf_inference.routes,
    edit.routes,
    openai_images.routes,
    metrics.routes,
    usage.routes,
)
# Open to everybody: health checks have no key, and an image is protected by its id, which cannot be guessed.
OPEN_DOORS: tuple[Callable[[ServerContext], APIRouter], ...] = (health.routes, openai_images.image_routes)

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def create_app(context: ServerContext, lifespan: Lifespan = _nothing, cors_origins: Sequence[str] = ()) -> FastAPI:
    """Build the application. `lifespan` is entered before the first request and left after the last."""

    @asynccontextmanager
    async def whole(_: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    app = FastAPI(title="Universal Image Model Worker", version=__version__, lifespan=whole, redoc_url=None)
    for door in DOORS:
        app.include_router(door(context), dependencies=[Depends(context.authenticator.admit)])
    for door in OPEN_DOORS:
        app.include_router(door(context))
    errors.install(app)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "X-Seed"],
        )
    app.add_middleware(errors.Boundary, answered=context.metrics.answered)
    openapi.install(app)
    return app
