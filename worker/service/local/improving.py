"""Idle time, spent on trying faster ways to generate: never in front of a job.

A try begins once the engine has had nothing to do for a while, and stops at its next step when it is asked for
anything. It is begun anew after that, or after the job that it was. After the last one there is rest until another job
was done.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from worker.core.errors import DeviceLost, JobCancelled
from worker.service.local.engine_thread import EngineThread

IDLE_S = 2.0


class Improving:
    """Tries one way after the other while the engine is idle. Used on the event loop.

    `give_up` is called where a try takes the device along. While `closing` nothing is begun, and what runs stops.
    """

    def __init__(
        self,
        engine: EngineThread,
        give_up: Callable[[DeviceLost], None],
        idle_s: float | None = IDLE_S,
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine = engine
        self._give_up = give_up
        self._idle_s = idle_s
        self._closing = closing
        self._timer: asyncio.TimerHandle | None = None
        self._future: Future[bool] | None = None
        self._job_is_there = False

    def rest(self) -> None:
        """Begin nothing new: a job has come, and what runs is told to stop as the engine's thread gets it."""
        self._job_is_there = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def idle(self) -> None:
        """Note that a job was done and no other is there. Without `idle_s` nothing is ever tried."""
        self._job_is_there = False
        if self._idle_s is None or self._timer is not None or (self._future is not None and not self._future.done()):
            return
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._engine.lost is not None or not self._engine.ready or self._closing():
            return
        self._future = self._engine.submit_aside(self._closing)
        asyncio.wrap_future(self._future).add_done_callback(self._end)

    def _end(self, done: "asyncio.Future[bool]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, DeviceLost):
            self._give_up(error)
        elif isinstance(error, JobCancelled):
            if not self._job_is_there:  # it was a question, after which nobody says that the engine is idle again
                self.idle()
        elif error is None and not done.cancelled() and done.result():
            self.idle()
