"""The worker of RunPod's queue: settings in, a running SDK out."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from worker.app.build import Worker, build_worker
from worker.app.fitness import check_device, check_models, check_volume
from worker.app.logs import configure_logging
from worker.app.posture import installation_warnings
from worker.app.registry import registry_warnings
from worker.app.runpod_sdk import import_sdk
from worker.app.settings import Settings, SettingsError, quiet_sdk, read_settings
from worker.app.signals import end_at_once, end_once_lost, hear_reload, hear_shutdown
from worker.catalog.operator_file import FileError
from worker.core.unsearched import unsearched
from worker.service.jobs.store import JobStore, StoreBounds
from worker.transport import runpod_results, runpod_taking
from worker.transport.local_run import LocalRun
from worker.transport.runpod_taking import Places
from worker.transport.serverless import ServerlessDoor
from worker.wire.result import encode_answer

_LOG = logging.getLogger("worker")
INVALID_CONFIGURATION = "invalid_configuration"
"""The code of every job of a worker whose settings are wrong."""
_REMEMBERED_BYTES = 128 * 2**20  # of results
_background: set[asyncio.Task[None]] = set()


def run_serverless(settings: Settings | None = None) -> None:
    """Serve RunPod's queue; or, off its machines, run one job from test_input.json or --test_input and exit.

    Without `settings` the environment is read here, and what is wrong with it is reported.
    """
    quiet_sdk()
    runpod = import_sdk()
    local = "--rp_serve_api" not in sys.argv
    try:
        settings = settings or read_settings()
        configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
        local = local and (settings.runpod_webhook_get_job is None or "--test_input" in sys.argv)
        if local:  # images go to files here, and files have no size limit
            settings = settings.without_response_limit()
        with unsearched():
            worker = build_worker(settings)
    except (SettingsError, FileError) as error:
        if settings is None or local:
            sys.exit(f"error: {error}")
        # On the platform an unhealthy ping says more than a process that dies.
        _refuse_to_start(str(error))
        return
    _warn(worker, settings)
    worker.versions.follow(worker.registry)
    streams = settings.stream_results and not local
    config: dict[str, Any] = {}
    at_terminal = LocalRun(settings.outputs_dir, _say_at_exit) if local else None
    door = build_door(
        worker,
        concurrency=settings.jobs_taken,
        encode=at_terminal.encode if at_terminal else encode_answer,
        send_progress=None if local else runpod.serverless.progress_update,
        on_loop_start=lambda: _begin(worker),
        on_loss=lambda: config.update(refresh_worker=streams),  # a chunk cannot say so, and the SDK looks here too
    )
    if not local:
        for check in (check_volume(settings), check_device(settings), check_models(worker.operations.readiness)):
            runpod.serverless.register_fitness_check(check)
        runpod_results.install(door)
    places = None if local else _places(worker, door)
    config |= {"handler": _handler(door, at_terminal, streams=streams)}
    config |= {"concurrency_modifier": _taken(worker, door, places)}
    runpod.serverless.start(config)


def _warn(worker: Worker, settings: Settings) -> None:
    warnings = (*settings.warnings(), *registry_warnings(worker.registry, settings))
    for warning in (*warnings, *installation_warnings(settings)):
        _LOG.warning("%s", warning)


def _handler(door: ServerlessDoor, at_terminal: LocalRun | None, *, streams: bool) -> Callable[..., Any]:
    """Return what the SDK calls for a job. It streams all results of a generator function, and none of another."""
    if at_terminal is not None:
        return at_terminal.reporting(door.handle)
    return door.stream if streams else door.handle


def _places(worker: Worker, door: ServerlessDoor) -> Places | None:
    """Have jobs taken as their places are free; none any more once the worker is being stopped."""
    admission, most = worker.operations.generation.admission, worker.settings.jobs_taken
    places = runpod_taking.install(lambda: 0 if admission.closing else most)
    if places is not None:
        door.on_generated = places.leave
    return places


def _taken(worker: Worker, door: ServerlessDoor, places: Places | None) -> Callable[[int], int]:
    """Return RunPod's concurrency_modifier: no job is taken for an engine that does not answer."""

    def concurrency(current: int) -> int:
        taken = door.concurrency(current)
        if worker.engine.obstacle:
            return 0
        return taken if places is None else places.told(taken)

    return concurrency


def build_door(worker: Worker, **options: Any) -> ServerlessDoor:
    """Build the door over a worker. Results are remembered, for RunPod may deliver a job twice."""
    bounds = StoreBounds(worker.settings.result_cache_seconds, _REMEMBERED_BYTES, max_under_way=None)
    return ServerlessDoor(JobStore(worker.operations.perform, bounds), worker.operations, **options)


def _begin(worker: Worker) -> None:
    """Start the parts that need the running loop: the signals, after RunPod's SDK has set its own, and the warm-up."""
    worker.tend_volume()
    hear_reload(worker.reload, worker.operations.pools.own)
    hear_shutdown(worker.operations.generation.admission.close, worker.settings.shutdown_grace_seconds)
    lost = end_once_lost(worker.until_lost, end_at_once, worker.operations.alerts.end)
    works: list[Coroutine[None, None, None]] = [lost, worker.tidy(), worker.watch_alerts()]
    if worker.settings.warm_up:  # else the fitness check has looked for the files
        works.append(worker.warm_up())
    for work in works:
        task = asyncio.get_running_loop().create_task(work)
        _background.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(_background.discard)


def _refuse_to_start(reason: str) -> None:
    runpod = import_sdk()

    def configuration_valid() -> None:
        raise RuntimeError(reason)

    async def handler(job: object) -> dict[str, object]:
        return {"error": reason, "code": INVALID_CONFIGURATION, "refresh_worker": True}

    runpod.serverless.register_fitness_check(configuration_valid)
    runpod.serverless.start({"handler": handler})


def _say_at_exit(line: str) -> None:
    """Print after the SDK's own last words, which would bury it."""
    import atexit

    atexit.register(print, line, file=sys.stderr if line.startswith("failed") else sys.stdout)
