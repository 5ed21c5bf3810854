"""The models that a worker must have before it counts as ready, and what stands against each of them."""

import asyncio
import logging
from collections.abc import Sequence

from worker.core.errors import WorkerError
from worker.core.result import ignore_progress
from worker.service.introspection.answers import DeviceAnswers
from worker.service.usage.privacy import unforeseen

_LOG = logging.getLogger("worker")

# Between two attempts at a model whose source may answer later: longer each time, up to the last.
PAUSES_S = (15.0, 30.0, 60.0, 120.0, 300.0)


class Readiness:
    """Has the default model and those to be preloaded made ready, and knows which of them cannot be.

    A model that failed counts as ready again once it is resident, whoever had it loaded.
    """

    def __init__(self, device: DeviceAnswers, names: Sequence[str]) -> None:
        self._device = device
        self._names = tuple(dict.fromkeys(names))
        self._failures: dict[str, WorkerError] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def problems(self) -> tuple[str, ...]:
        """Return one sentence for a device that does not answer, and for each model that cannot be had."""
        for name in [name for name in self._failures if self._device.is_resident(name)]:
            del self._failures[name]
        obstacle = self._device.obstacle
        models = (f"{name}: {error.message}" for name, error in self._failures.items())
        return (*([obstacle] if obstacle else []), *models)

    async def prepare(self, *, loaded: bool) -> None:
        """Load every model, or look for its files without loading any. Failures are noted and logged."""
        for name in self._names:
            await self._try(name, loaded=loaded)

    async def retry(self, *, loaded: bool) -> None:
        """Try models that failed again, for ever: by and by if their source may answer later, else when woken."""
        self._loop = asyncio.get_running_loop()
        pauses = iter(PAUSES_S)
        while True:
            later = any(error.retryable for error in self._failures.values())
            try:
                await asyncio.wait_for(self._woken.wait(), next(pauses, PAUSES_S[-1]) if later else None)
                self._woken.clear()
                names = [*self._failures]
            except TimeoutError:
                names = [name for name, error in self._failures.items() if error.retryable]
            for name in names:
                await self._try(name, loaded=loaded)
            if not self._failures:
                pauses = iter(PAUSES_S)

    def wake(self) -> None:
        """Have every model that failed tried again now, as when models.yaml was read again. Any thread may call it."""
        if self._loop is None:
            self._woken.set()  # nobody waits yet
        else:
            self._loop.call_soon_threadsafe(self._woken.set)

    async def _try(self, name: str, *, loaded: bool) -> None:
        try:
            if loaded:
                await self._device.preload(name, ignore_progress)
            else:
                await self._device.check(name)
        except Exception as error:  # whatever it is, it keeps this model from being served
            failure = error if isinstance(error, WorkerError) else unforeseen(error)
            self._failures[name] = failure
            _LOG.warning("not ready, %s: %s", name, failure.message)
        else:
            self._failures.pop(name, None)
