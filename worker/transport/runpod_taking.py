"""Jobs on their way from RunPod's queue: the next one is asked for as soon as another is generated.

What the SDK (1.12.0) does, and what is done about it here:

- It asks for jobs while it has places for them. A job holds its place until its answer is posted, and with all places
  taken the SDK sleeps for a second before it looks again. Of jobs that take 0.3 s the device waits for a third of the
  time. Here a job gives its place back once its pixels are there, so that it is encoded and posted while the next one
  is fetched. The SDK is told of more places than there are: it always asks, and waits here.
- A job without an id of its own ends its loop, or loses the jobs that came with it. Here it is left out, and told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

_LOG = logging.getLogger(__name__)
# As long as the SDK itself sleeps: it looks whether it has to end, and how many jobs it may have.
_LOOK_EVERY_S = 1.0


class Places:
    """Places for `most` jobs that are taken and not generated yet. Used on the SDK's event loop.

    `in_progress` lists the ids of the jobs that the SDK has: its own list, so that no place is ever lost.
    """

    def __init__(self, most: Callable[[], int], in_progress: Callable[[], Iterable[str]]) -> None:
        self._most, self._in_progress = most, in_progress
        self._generated: set[str] = set()
        self._news = asyncio.Event()

    def told(self, most: int) -> int:
        """Return the number of places that the SDK is told of.

        It counts a job twice until it has begun it; and as many answers as places, and one more, may wait to be posted.
        """
        return 3 * most + 1 if most else 0

    def leave(self, job_id: str) -> None:
        """Note that a job is generated, or over without that. To say so again does nothing."""
        self._generated.add(job_id)
        self._news.set()

    @property
    def free(self) -> int:
        """The number of jobs that may be taken now."""
        jobs = {*self._in_progress()}
        self._generated &= jobs
        return max(0, self._most() - len(jobs - self._generated))

    async def wait(self) -> int:
        """Return the number of free places, once there is one; 0 if that takes longer than a second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                while not self.free:
                    self._news.clear()
                    await self._news.wait()
        return self.free


def taking(get_jobs: Callable[..., Awaitable[Any]], places: Places) -> Callable[..., Awaitable[list[dict[str, Any]]]]:
    """Return the SDK's fetcher of jobs, which waits for a place, and leaves out what the SDK cannot run."""

    async def take(session: Any, number: int = 1) -> list[dict[str, Any]]:
        free = await places.wait()
        if not free:
            return []
        jobs = await get_jobs(session, min(number, free)) or []
        taken = [job for job in jobs if isinstance(job, dict) and isinstance(job.get("id"), str | int | float)]
        if len(taken) < len(jobs):
            _LOG.error("%d jobs without an id were left out: nothing can be answered to them", len(jobs) - len(taken))
        # The SDK makes arguments of the keys.
        return [{key: value for key, value in job.items() if key != "self"} for job in taken]

    return take


def install(most: Callable[[], int]) -> Places | None:
    """Put this between RunPod's SDK and its queue. Another SDK than the one that was read is left as it is: None."""
    from runpod.serverless.modules import rp_scale

    try:
        get_job, progress = rp_scale.get_job, rp_scale.JobsProgress()
    except AttributeError as error:
        _LOG.warning("jobs are taken as RunPod's SDK takes them: this one has no %s", error.name)
        return None
    places = Places(most, lambda: [str(job.id) for job in progress])
    rp_scale.get_job = taking(get_job, places)
    return places
