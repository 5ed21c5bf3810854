"""The worker of a platform that calls it as an object, in a process which that platform started: Modal, Ray."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any

from worker.app.build import Worker, build_worker
from worker.app.logs import configure_logging
from worker.app.registry import registry_warnings
from worker.app.settings import Settings
from worker.app.signals import end_once_lost
from worker.core.answer import WorkerStatus
from worker.service.jobs.store import JobStore, StoreBounds
from worker.transport.called import CalledDoor, Update

_LOG = logging.getLogger("worker")
_REMEMBERED_BYTES = 128 * 2**20  # of results, which may be asked for again
_FAREWELL_S = 5.0


class CalledWorker:
    """A worker and its one door. Everything but `import_engine` runs on one event loop.

    `on_loss` is called once the engine does not answer any more: the platform should start another worker then.
    """

    def __init__(self, settings: Settings, on_loss: Callable[[], None] = lambda: None) -> None:
        configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
        # The caller is a gateway, which bounds its own answers.
        self.worker: Worker = build_worker(settings.without_response_limit())
        bounds = StoreBounds(settings.result_cache_seconds, _REMEMBERED_BYTES, max_under_way=None)
        self._jobs = JobStore(self.worker.operations.perform, bounds)
        self._door = CalledDoor(self._jobs)
        self._on_loss = on_loss
        self._tasks: list[asyncio.Task[None]] = []
        for warning in (*settings.warnings(), *registry_warnings(self.worker.registry, settings)):
            _LOG.warning("%s", warning)

    @property
    def lost(self) -> bool:
        """True once the engine does not answer any more."""
        return self.worker.engine.lost is not None

    def begin(self) -> None:
        """Watch the engine from now on and, with WARM_UP, load the models to be served first."""
        lost = end_once_lost(self.worker.until_lost, self._on_loss, self.worker.operations.alerts.end)
        works: list[Coroutine[None, None, None]] = [lost, self.worker.watch_alerts()]
        if self.worker.settings.warm_up:
            works.append(self.worker.warm_up())
        self._tasks += [asyncio.get_running_loop().create_task(work) for work in works]

    def stream(self, job: Mapping[str, Any]) -> AsyncGenerator[Update, None]:
        """Yield a job's updates, as worker/transport/called.py has them."""
        return self._door.stream(job)

    def status(self) -> WorkerStatus:
        """Return what runs here and which models are resident."""
        return self.worker.operations.status()

    async def end(self) -> None:
        """Give the jobs their time, then stop them; write down what was counted."""
        await self.worker.operations.generation.admission.close(self.worker.settings.shutdown_grace_seconds)
        await self._jobs.close(_FAREWELL_S)
        for task in self._tasks:
            task.cancel()
        await self.worker.operations.alerts.end(_FAREWELL_S)
        await self.worker.operations.pools.own.run(self.worker.close)


def import_engine() -> None:
    """Import torch and diffusers, which takes seconds and needs no device: a memory snapshot keeps them."""
    import worker.engine.engine  # noqa: F401
