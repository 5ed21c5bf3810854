"""The worker as an HTTP server of its own: settings in, a listening process out. The rest of the composition root."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from pydantic import JsonValue, SecretStr

from worker.app.alerting import webhook_sender
from worker.app.build import build_worker
from worker.app.listening import KEEP_ALIVE_S, connection_limits, listen
from worker.app.logs import WITHOUT_QUERY, configure_logging
from worker.app.memory import keep_buffers
from worker.app.models_file import ModelsFileError, add_find
from worker.app.place import Place
from worker.app.posture import installation_warnings
from worker.app.registry import registry_warnings
from worker.app.served import Served
from worker.app.settings import Settings, SettingsError
from worker.app.signals import end_at_once, end_once_lost, end_well_on_terminate, hear_reload, hear_shutdown
from worker.catalog.operator_file import FileError
from worker.core.discovery import Added, Find
from worker.core.errors import InvalidRequest
from worker.remote.fleet import Fleet
from worker.service.jobs.store import JobStore, StoreBounds, StoreHooks
from worker.service.limits.accounts import Accounts
from worker.service.limits.api_keys import KeyListError, Keyring, parse_keys, read_api_keys
from worker.service.limits.key_rights import KeyRight
from worker.service.limits.pools import Pool
from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.service.local.volume import Volume
from worker.service.recipes.shelf import RecipeShelf
from worker.transport.web.addresses import Addresses
from worker.transport.web.auth import Authenticator
from worker.transport.web.connections import Connections
from worker.transport.web.context import ServerContext
from worker.transport.web.host_names import HostNames
from worker.transport.web.http_connection import http_protocol
from worker.transport.web.incoming import Incoming
from worker.transport.web.server import create_app
from worker.transport.web.socket_connection import socket_protocol
from worker.transport.web.state import State
from worker.transport.web.tokens import Tokens
from worker.transport.web.webhooks import Webhooks

_LOG = logging.getLogger("worker")
# The server listens before torch is imported, which leaves the interpreter to nobody for long stretches.
_HEAD_START_S = 0.1
# The time to encode answers, and for callers to take them, once the jobs behind them have ended.
_FAREWELL_S = 5


def serve(settings: Settings) -> None:
    """Listen until the process is stopped. One process: several are worker/app/processes.py."""
    try:
        app = application(settings)
        sockets = [listen(settings.api_host, port) for port in settings.listening_ports]
    except (SettingsError, FileError) as error:
        sys.exit(f"error: {error}")
    for listening in sockets:
        _LOG.info("listening on http://%s:%d", *listening.getsockname()[:2])
    end_well_on_terminate()
    uvicorn.Server(server_config(app, settings)).run(sockets)


def application(settings: Settings) -> FastAPI:
    """Build the application of a process of its own, and log its warnings. Raises SettingsError, FileError."""
    configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
    if settings.api_workers > 1:
        # The processes of another server know nothing of each other's jobs.
        raise SettingsError(
            f"API_WORKERS={settings.api_workers}: worker.asgi is one process of another server; leave it at 1, or "
            "start the worker's own server with STANDALONE_MODE=1 python handler.py."
        )
    worker = _built(settings)
    app = build_app(worker, hears_signals=True)
    warnings = (*settings.warnings(), *registry_warnings(worker.registry, settings), *settings.server_warnings())
    for warning in (*warnings, *installation_warnings(settings)):
        _LOG.warning("%s", warning)
    return app


def _built(settings: Settings) -> Served:
    if not settings.gateway_mode:
        return build_worker(settings)
    from worker.app.gateway import build_gateway

    keep_buffers()
    return build_gateway(settings)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration, whatever sockets it listens on."""
    logging.getLogger("uvicorn.error").addFilter(WITHOUT_QUERY)
    connections = Connections(connection_limits(settings))
    message_bytes = int(min(settings.max_message_mb, settings.max_body_mb) * 1e6)
    # Frames are put together in memory, so all unfinished ones may be little more than one of the largest.
    messages = Incoming(message_bytes, message_bytes * 5 // 4)
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # its lines know nothing of request ids
        http=http_protocol(connections),
        ws=socket_protocol(connections, messages),
        ws_max_size=message_bytes,
        proxy_headers=False,  # whom to believe is in transport/web/addresses.py
        ws_per_message_deflate=False,  # 112 KB of it may be 115 MB, and images do not become smaller
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds) + _FAREWELL_S,
        server_header=False,
    )


def build_app(worker: Served, *, hears_signals: bool = False, place: Place | None = None) -> FastAPI:
    """Build the application over a worker. It answers at once; the engine and the first models come up behind it.

    With `hears_signals` the process is its own, and SIGTERM and SIGHUP are meant for it. `place` is that of a process
    among several.
    """
    settings = worker.settings
    authenticator = _authenticator(worker, Tokens(place.token_secret) if place else Tokens())
    pools = worker.operations.pools
    webhooks = _webhooks(settings, pools.webhooks)
    job_store = _job_store(worker, webhooks)
    warm = asyncio.Event()

    def state() -> State:
        if worker.is_lost:
            return "lost"
        if worker.operations.readiness.problems():
            return "failed"
        return "ready" if warm.is_set() else "starting"

    async def warm_up() -> None:
        if settings.warm_up:
            await asyncio.sleep(_HEAD_START_S)
        await worker.warm_up(warm.set)

    admission, grace_s = worker.operations.generation.admission, settings.shutdown_grace_seconds

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await pools.own.run(worker.versions.follow, worker.registry)
        if hears_signals:
            worker.tend_volume()
            hear_reload(lambda: reload(worker, authenticator), pools.own)
            hear_shutdown(admission.close, grace_s)
        with _beside(warm_up(), worker.watch_alerts(), *_care(worker, hears_signals=hears_signals)):
            yield
        await admission.close(grace_s)  # jobs without an open connection have their time too
        await job_store.close(_FAREWELL_S)
        alerts = worker.operations.alerts
        await asyncio.gather(webhooks.close(_FAREWELL_S), alerts.end(_FAREWELL_S))
        await asyncio.gather(pools.own.run(worker.close), worker.let_go())
        if hears_signals and worker.is_lost:
            end_at_once()

    context = ServerContext(
        worker.operations,
        job_store,
        webhooks,
        state,
        settings.device != "cpu" and Path("/proc/driver/nvidia/version").exists(),
        worker.metrics,
        worker.usage_log,
        authenticator=authenticator,
        process=place.number if place else None,
    )
    context = replace(context, **_of_settings(settings), addresses=_addresses(settings, place))
    context = replace(context, add_model=partial(_add_model, worker), **_shelves(worker, place))
    app = create_app(context, lifespan, settings.cors_origins)
    app.state.job_store = job_store
    return app


class _Shelves(TypedDict):
    volume: Volume | None
    fleet: Fleet | None
    recipes: RecipeShelf | None


def _shelves(worker: Served, place: Place | None) -> _Shelves:
    """Return what an operator looks after."""
    return {"volume": worker.volume, "fleet": worker.fleet, "recipes": _recipes(worker, place)}


class _OfSettings(TypedDict):
    incoming: Incoming
    max_sockets_per_caller: int
    edit_model: str | None
    public_url: str | None
    shows_page: bool
    settings: dict[str, JsonValue]


def _of_settings(settings: Settings) -> _OfSettings:
    """Return what the doors are told of the settings."""
    return {
        "incoming": Incoming(int(settings.max_body_mb * 1e6), int(settings.max_incoming_mb * 1e6)),
        "max_sockets_per_caller": settings.max_sockets_per_caller,
        "edit_model": settings.edit_model or settings.model_id,
        "public_url": settings.public_url,
        "shows_page": settings.web_page,
        "settings": settings.shown(),
    }


def _add_model(worker: Served, name: str, find: Find) -> Added:
    """Write a find into models.yaml, and serve it unless it waits for a review. Raises InvalidRequest."""
    try:
        added = add_find(worker.settings, name, find)
    except ModelsFileError as error:
        raise InvalidRequest(str(error), field="name") from None
    if not added.waits:
        worker.reload()
    return added


def _addresses(settings: Settings, place: Place | None) -> Addresses:
    """Return what holds callers without keys to their rate. Processes behind one port count together."""
    limits = QuotaLimits(0 if settings.has_keys else settings.rate_limit_per_address)
    accounts = Accounts(None, place.shared_addresses if place else None)
    return Addresses(settings.trusted_proxies, Quotas(limits, accounts, whom="address"))


def _care(worker: Served, *, hears_signals: bool) -> list[Coroutine[None, None, None]]:
    """Return what watches the engine, and of a process of its own what keeps its memory small.

    Once the engine is lost it ends as by SIGTERM, so that what can be answered still is.
    """
    if not hears_signals:
        return [end_once_lost(worker.until_lost, _go_on)]
    return [end_once_lost(worker.until_lost, partial(signal.raise_signal, signal.SIGTERM)), worker.tidy()]


def _go_on() -> None:
    """Leave a server in another program's thread to that program."""


@contextmanager
def _beside(*works: Coroutine[None, None, None]) -> Iterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    yield
    for task in tasks:
        task.cancel()


def _job_store(worker: Served, webhooks: Webhooks) -> JobStore:
    settings = worker.settings
    bounds = StoreBounds(
        settings.job_retention_seconds,
        int(settings.job_retention_mb * 2**20),
        # One bound for the job store and the admission: a job must not be taken here and then fail for lack of room.
        settings.max_concurrent_jobs + settings.max_queued_jobs,
        int(settings.max_queued_mb * 2**20),
    )
    hooks = StoreHooks(worker.operations.admit, worker.operations.refuse, webhooks.notify)
    return JobStore(worker.operations.perform, bounds, hooks)


def _webhooks(settings: Settings, pool: Pool) -> Webhooks:
    return Webhooks(webhook_sender(settings), pool)


def _recipes(worker: Served, place: Place | None) -> RecipeShelf:
    """Return the shelf of recipes, of which all processes of this server are told when it changes."""
    settings = worker.settings

    def folder() -> Path:
        return settings.recipes_place or settings.models_yaml.with_name("recipes")

    def read_again() -> None:
        worker.reload()
        if place is not None:
            os.kill(os.getppid(), signal.SIGHUP)

    generation = worker.operations.generation
    return RecipeShelf(folder, generation.acceptor, worker.operations.pools, read_again)


def reload(worker: Served, authenticator: Authenticator) -> None:
    """Read models.yaml and API_KEYS_FILE again. A file with a mistake changes nothing, and the log names it."""
    worker.reload()
    if worker.settings.api_keys_file is None:
        return
    try:
        keys = build_keyring(worker.settings)
    except SettingsError as error:
        _LOG.error("the API keys are not reloaded: %s", error)
        return
    authenticator.replace_keys(_hold_to(worker, keys))
    _LOG.info("the API keys are reloaded: %d", len(keys.callers))


def build_keyring(settings: Settings) -> Keyring:
    """Return the keys that open the server. Raises SettingsError, which holds none of them."""
    callers, rights = _keys("API_KEYS", settings.api_keys), dict[str, KeyRight]()
    if settings.api_keys_file is not None:
        try:
            of_file, rights = read_api_keys(settings.api_keys_file)
        except KeyListError as error:
            raise SettingsError(f"API_KEYS_FILE: {error}") from None
        callers |= of_file
    return Keyring(callers, _keys("ADMIN_KEYS", settings.admin_keys), rights)


def _hold_to(worker: Served, keys: Keyring) -> Keyring:
    """Have jobs held to the rights of these keys from now on."""
    several = len({*keys.callers.values(), *keys.admins.values()}) > 1
    worker.operations.generation.admission.rights.replace(keys.rights, several=several)
    return keys


def _keys(variable: str, value: SecretStr | None) -> dict[str, str]:
    if value is None:
        return {}
    try:
        return parse_keys(value.get_secret_value().split(","))
    except KeyListError as error:
        raise SettingsError(f"{variable}: {error}") from None


def _origins(settings: Settings) -> tuple[str, ...]:
    """Return the web pages that may use this server: those that the operator names, and its own."""
    if settings.public_url is None:
        return settings.cors_origins
    scheme, netloc = urlsplit(settings.public_url)[:2]
    return (*settings.cors_origins, f"{scheme}://{netloc}")


def _authenticator(worker: Served, tokens: Tokens) -> Authenticator:
    """Return what lets requests in: its keys, and the names that this server answers to without any."""
    settings = worker.settings
    public = urlsplit(settings.public_url or "").hostname
    names = HostNames((*settings.api_hostnames, socket.gethostname(), *([public] if public else [])))
    keys = _hold_to(worker, build_keyring(settings))
    return Authenticator(keys, _origins(settings), worker.operations.deny, names, tokens)
