"""What this worker learns of calls, exchanged with the others over the volume: never on the event loop's time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from worker.service.local.pace import Paces
from worker.service.local.pace_store import PaceStore

# The least time between two exchanges about one model. The first is made after its first call.
EVERY_S = 30.0


class Sharing:
    """Exchanges the paces of models, one after the other in a thread. Used on the event loop; without a store never."""

    def __init__(self, paces: Paces, store: PaceStore | None, now: Callable[[], float] = time.monotonic) -> None:
        self._paces = paces
        self._store = store
        self._now = now
        self._last: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="paces")  # a network volume may take its time

    def learnt(self, model: str, standing: str) -> None:
        """Note that calls of a model were made; `standing` is the key of its files, device and libraries."""
        if self._store is None or not standing or (self._task is not None and not self._task.done()):
            return
        last = self._last.get((model, standing))
        if last is None or self._now() - last >= EVERY_S:
            self._last[model, standing] = self._now()
            self._task = asyncio.get_running_loop().create_task(self._exchange(self._store, model, standing))

    async def _exchange(self, store: PaceStore, model: str, standing: str) -> None:
        exchanged = self._thread.submit(store.exchange, standing, self._paces.known(model))
        known = await asyncio.wrap_future(exchanged)
        self._paces.take_in(model, known)
