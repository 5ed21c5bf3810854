"""The ends of a running worker: SIGTERM to finish and stop, a lost engine; and SIGHUP to read its files again."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import NoReturn

from worker.service.limits.pools import Pool

_LOG = logging.getLogger("worker")
LOST_STATUS = 75
"""The exit status of a worker whose engine does not answer any more: whoever started it should start another."""
_HEARING_S = 5.0
_tasks: set[asyncio.Task[None]] = set()


def hear_reload(reload: Callable[[], None], pool: Pool) -> None:
    """Call `reload` on SIGHUP, in a thread of `pool`: it reads files."""

    async def reload_in_thread() -> None:
        await pool.run(reload)

    if _hears_signals():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: _start(reload_in_thread()))


def hear_shutdown(close: Callable[[float], Awaitable[None]], grace_s: float) -> None:
    """Call `close` with `grace_s` on SIGTERM and SIGINT, and then the earlier handler of the signal.

    Call it once the server that runs on this loop has set its own handlers.
    """

    async def closing() -> None:
        await close(grace_s)

    if not _hears_signals():
        return
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        _LOG.info("stopping: jobs have %g seconds to finish", grace_s)
        loop.call_soon_threadsafe(lambda: _start(closing()))
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in handlers:
        signal.signal(number, handle)


async def end_once_lost(
    until_lost: Callable[[], Awaitable[None]],
    end: Callable[[], None],
    tell: Callable[[float], Awaitable[None]] | None = None,
) -> None:
    """Call `end` once the engine is lost and those who are told so have had the time to hear it.

    `tell` has the operator told meanwhile, within the seconds that it is given.
    """
    await until_lost()
    _LOG.critical("the engine is lost: this worker ends with status %d", LOST_STATUS)
    await asyncio.gather(asyncio.sleep(_HEARING_S), *([tell(_HEARING_S)] if tell else []))
    end()


def end_at_once() -> NoReturn:
    """End the process with LOST_STATUS. Nothing else would: at its usual end a process waits for its threads."""
    logging.shutdown()
    os._exit(LOST_STATUS)


def end_well_on_terminate() -> None:
    """Have SIGTERM end this process with status 0. The server raises it again once it has finished in its own way."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)


def _hears_signals() -> bool:
    """True if this loop is the process's own: a server in another program's thread leaves the signals to it."""
    return threading.current_thread() is threading.main_thread()


def _start(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    _tasks.add(task)  # the loop itself holds tasks weakly
    task.add_done_callback(_tasks.discard)
