"""The jobs that are with a replica. Ours is the deadline of each, and one that is given up is taken back there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from worker.remote.platforms.platform import LostSight
from worker.remote.platforms.question import Timed

T = TypeVar("T")  # what a platform finds a job by: its id there, a call
_LONGEST_S = 1e6  # of a timer; a job without a deadline has none


@asynccontextmanager
async def deadline_of(job: Timed) -> AsyncIterator[None]:
    """Enclose what may take no longer than `job`. Raises its JobTimeout."""
    try:
        async with _until_deadline(job):
            yield
    except TimeoutError:
        raise job.stop.timed_out() from None


class UnderWay(Generic[T]):
    """The jobs that a replica has, by their keys. `take_back` has one cancelled there, and raises nothing."""

    def __init__(self, take_back: Callable[[T], Awaitable[None]]) -> None:
        self._take_back = take_back
        self._taken: dict[str, T] = {}
        self._taking_back: set[asyncio.Task[None]] = set()

    def __getitem__(self, key: str) -> T | None:
        """Return what the job is found by; None if that was never heard."""
        return self._taken.get(key)

    def __setitem__(self, key: str, handle: T) -> None:
        """Note that the replica has the job."""
        self._taken[key] = handle

    @asynccontextmanager
    async def bracket(self, job: Timed, key: str, *, last: bool = False) -> AsyncIterator[None]:
        """Enclose the way of a job there: it is forgotten at its end, and kept while it is only lost sight of.

        `last`: then it is forgotten too, for nobody will ask for it again.
        At its deadline, and when nobody waits any more, it is taken back; nobody waits for that.
        """
        try:
            async with _until_deadline(job):
                yield
        except LostSight:
            if last:
                self._taken.pop(key, None)
            raise  # else it will be asked for by its key
        except TimeoutError:
            self._give_up(key)
            raise job.stop.timed_out() from None
        except asyncio.CancelledError:
            self._give_up(key)
            raise
        except BaseException:
            self._taken.pop(key, None)
            raise
        self._taken.pop(key, None)

    async def close(self, within_s: float) -> None:
        """Wait, for so long at most, until jobs that were given up are taken back."""
        if self._taking_back:
            await asyncio.wait(self._taking_back, timeout=within_s)

    def _give_up(self, key: str) -> None:
        if (handle := self._taken.pop(key, None)) is not None:
            task = asyncio.ensure_future(self._take_back(handle))
            self._taking_back.add(task)
            task.add_done_callback(self._taking_back.discard)


def _until_deadline(job: Timed) -> asyncio.Timeout:
    return asyncio.timeout(max(0.0, min(job.stop.remaining_s, _LONGEST_S)))
