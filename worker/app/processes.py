"""The HTTP server as several processes behind one port, one for each GPU: they are started, watched and replaced.

The process that owns the port loads no model. It gives each request to the least busy process, and what is about a job
to the process that has it: a job's id ends in the number of its process. See docs/deploy.md.
"""

import asyncio
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from urllib.parse import urlsplit

from worker.app import server
from worker.app.environment import visible_gpus
from worker.app.listening import connection_limits, listen
from worker.app.logs import configure_logging
from worker.app.place import Place
from worker.app.posture import installation_warnings
from worker.app.process import LOST, run_process
from worker.app.registry import build_registry, registry_warnings
from worker.app.settings import Settings, SettingsError, process_environment
from worker.catalog.operator_file import FileError
from worker.transport.processes.front import Front
from worker.transport.processes.table import Process, ProcessTable
from worker.transport.web.connections import Connections

_LOG = logging.getLogger("worker")
_SPAWN = multiprocessing.get_context("spawn")
_FAREWELL_S = 15.0  # beyond the jobs' own time: to encode, to deliver, to close
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LONG_S = 60.0  # a process that lived this long is started again at once


def serve(settings: Settings) -> None:
    """Listen until the process is stopped, with as many processes as API_WORKERS says."""
    if settings.api_workers == 1:
        server.serve(settings)
        return
    configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
    try:
        if not hasattr(socket, "AF_UNIX"):
            raise SettingsError("API_WORKERS: this system has no Unix sockets, which several processes need; leave it.")
        registry = build_registry(settings)
        server.build_keyring(settings)
        sockets = [listen(settings.api_host, port) for port in settings.listening_ports]
    except (SettingsError, FileError) as error:
        sys.exit(f"error: {error}")
    gpus = visible_gpus(process_environment()) if settings.device in ("auto", "cuda") else []
    warnings = (*settings.warnings(), *registry_warnings(registry, settings), *settings.server_warnings())
    for warning in (*warnings, *sharing_warnings(settings.api_workers, len(gpus)), *installation_warnings(settings)):
        _LOG.warning("%s", warning)
    folder = Path(tempfile.mkdtemp(prefix="imgworker-"))
    try:
        fleet = Fleet(settings, places(settings.api_workers, folder, gpus))
        if not asyncio.run(fleet.run(sockets)):
            sys.exit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sharing_warnings(processes: int, gpus: int) -> list[str]:
    """Return a sentence if some of the processes share a device."""
    if gpus == 0:
        return [
            f"API_WORKERS={processes} and no GPU: all processes share the CPU and its memory, and each loads the "
            "models; 1 is as fast."
        ]
    if processes > gpus:
        return [
            f"API_WORKERS={processes} and {gpus} GPU{'s' * (gpus > 1)}: some processes share a GPU, and each of them "
            "loads the models; have one process for each GPU."
        ]
    return []


def places(processes: int, folder: Path, gpus: list[str]) -> list[Place]:
    """Return the place of each process: their GPUs in turn."""
    secret = secrets.token_bytes(32)
    return [
        Place(number, folder, gpus[(number - 1) % len(gpus)] if gpus else None, secret)
        for number in range(1, processes + 1)
    ]


@dataclass(slots=True)
class _Running:
    """A process that was started."""

    process: SpawnProcess
    reports: Connection
    started: float
    has_listened: bool = False


class Fleet:
    """The processes of one server. Used on one event loop."""

    def __init__(self, settings: Settings, places: list[Place]) -> None:
        self._settings = settings
        self._places = places
        self._table = ProcessTable([Process(place.number, place.address) for place in places])
        self._running: dict[int, _Running] = {}
        self._stopping = asyncio.Event()
        self._asked = 0
        self._failed = False

    async def run(self, sockets: list[socket.socket]) -> bool:
        """Serve these ports until a signal. Returns False if a process could not be started."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell_all, signal.SIGHUP)
        connections = Connections(connection_limits(self._settings))
        front = Front(self._table, urlsplit(self._settings.public_url or "").path, connections)
        keepers = [asyncio.create_task(self._keep(place)) for place in self._places]
        doors = [asyncio.create_task(front.serve(listening)) for listening in sockets]
        for listening in sockets:
            _LOG.info("listening on http://%s:%d", *listening.getsockname()[:2])
        await self._stopping.wait()
        for door, listening in zip(doors, sockets, strict=True):
            door.cancel()
            await asyncio.gather(door, return_exceptions=True)
            listening.close()
        within_s = self._settings.shutdown_grace_seconds + _FAREWELL_S
        await asyncio.wait(keepers, timeout=within_s)
        self._tell_all(signal.SIGKILL)
        await asyncio.gather(*keepers)
        await front.close(_FAREWELL_S)
        return not self._failed

    def _stop(self) -> None:
        """Have all processes finish and end; the second time, end them."""
        self._asked += 1
        if self._asked == 1:
            _LOG.info("stopping: jobs have %g seconds to finish", self._settings.shutdown_grace_seconds)
        self._stopping.set()
        self._tell_all(signal.SIGTERM if self._asked == 1 else signal.SIGKILL)

    def _tell_all(self, number: signal.Signals) -> None:
        for running in self._running.values():
            _signal(running.process, number)

    async def _keep(self, place: Place) -> None:
        """Start a process, and start it again whenever it ends, until all are stopped."""
        failures = 0
        while not self._stopping.is_set():
            running = self._running[place.number] = self._start(place)
            await self._watch(place.number, running)
            self._table.report(place.number, None)
            del self._running[place.number]
            running.reports.close()
            running.process.join()
            if self._stopping.is_set():
                return
            if not running.has_listened and failures == 0 and not any(r.has_listened for r in self._running.values()):
                self._failed = True  # what keeps it from starting keeps the others, and has been said by it
                self._stop()
                return
            failures = 1 if time.monotonic() - running.started > _LONG_S else failures + 1
            pause_s = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1]
            _LOG.error(
                "process %d ended (%s) and is started again in %g s; its jobs are lost",
                *(place.number, running.process.exitcode, pause_s),
            )
            await _set_within(self._stopping, pause_s)

    def _start(self, place: Place) -> _Running:
        reports, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(
            target=run_process, args=(self._settings, place, theirs), name=f"worker {place.number}"
        )
        # Ctrl-C reaches every process of a terminal: the processes are told to end by this one, once.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        return _Running(process, reports, time.monotonic())

    async def _watch(self, number: int, running: _Running) -> None:
        """Take a process's reports until it has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def hear() -> None:
            try:
                load = running.reports.recv()
            except (EOFError, OSError):
                loop.remove_reader(running.reports.fileno())
                return
            if load == LOST:
                self._table.report(number, None)  # it ends by itself, once those who wait have been told
                return
            running.has_listened = True
            self._table.report(number, load)

        loop.add_reader(running.reports.fileno(), hear)
        loop.add_reader(running.process.sentinel, ended.set)
        if self._stopping.is_set():  # it was started amid the end
            _signal(running.process, signal.SIGTERM)
        await ended.wait()
        loop.remove_reader(running.process.sentinel)
        loop.remove_reader(running.reports.fileno())


def _signal(process: SpawnProcess, number: signal.Signals) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
