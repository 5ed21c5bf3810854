"""One of several processes behind a port: a worker with its own device, at a socket that only the front reaches."""

import asyncio
import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

import uvicorn

from worker.app.build import build_worker
from worker.app.environment import choose_gpu
from worker.app.logs import configure_logging
from worker.app.place import Place
from worker.app.served import Served
from worker.app.server import build_app, server_config
from worker.app.settings import Settings, SettingsError, process_environment
from worker.app.signals import end_well_on_terminate
from worker.catalog.operator_file import FileError
from worker.service.jobs.store import JobStore
from worker.transport.processes.table import REPORT_S

LOST = -1
"""The report of a process whose engine is lost: it takes no more jobs, and ends soon."""


def run_process(settings: Settings, place: Place, reports: Connection) -> None:
    """Serve until stopped, and report the number of jobs under way. Ends when the process that started it ends."""
    configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
    choose_gpu(process_environment(), place.gpu)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        worker = build_worker(settings, place=place)
        app = build_app(worker, hears_signals=True, place=place)
    except (SettingsError, FileError) as error:
        sys.exit(f"error: {error}")
    # All connections come from the front, which holds callers to their share.
    config = server_config(app, settings.model_copy(update={"max_connections_per_address": settings.max_connections}))
    config.uds = str(place.address)
    place.address.unlink(missing_ok=True)  # of a process that was killed
    end_well_on_terminate()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(uvicorn.Server(config), worker, app.state.job_store, reports))


async def _serve(server: uvicorn.Server, worker: Served, job_store: JobStore, reports: Connection) -> None:
    async def report() -> None:
        last = None
        while True:
            load = LOST if worker.is_lost else job_store.under_way
            if server.started and load != last:
                reports.send(load)
                last = load
            await asyncio.sleep(REPORT_S)

    reporting = asyncio.create_task(report())
    try:
        await server.serve()
    finally:
        reporting.cancel()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
