"""Who is let in: how many jobs at once, how many wait, how much work one may be, and none once the worker is stopped.

The rules are the worker's own and the same at every door. What each caller may use stands in `quotas.py`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from worker.core.errors import Overloaded, ParameterOutOfRange, ShuttingDown
from worker.core.job import Job

# A first guess of how long a job takes, until some have run.
_FIRST_GUESS_S = 5.0
_NEWEST = 0.2  # what the last job counts in the running mean


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How much is taken. `max_concurrent` jobs are worked on, `max_queued` more wait; 0 pixel-steps is no limit."""

    max_concurrent: int = 64
    max_queued: int = 256
    max_pixel_steps: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """How many jobs are worked on now, and how many wait: for a place, for company, for the device."""

    running: int
    queued: int


class Admission:
    """Lets jobs in. Used on one event loop."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_concurrent)
        self._inside: dict[int, tuple[Job, asyncio.Task[object] | None]] = {}
        self._waiting = 0
        self._mean_s = _FIRST_GUESS_S
        self._closing = False
        self._closed_at = 0.0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        """Jobs that have a place."""
        return len(self._inside) - self._waiting

    @property
    def queued(self) -> int:
        """Jobs that wait for one."""
        return self._waiting

    @property
    def closing(self) -> bool:
        """Whether the worker is being stopped."""
        return self._closing

    @asynccontextmanager
    async def admitted(self, job: Job) -> AsyncIterator[None]:
        """Hold a place for `job`, waiting for one at most until its deadline.

        Raises Overloaded when too many wait, ShuttingDown.
        """
        self.check_open()
        self._inside[id(job)] = (job, asyncio.current_task())
        self._empty.clear()
        try:
            await self._take_slot(job)
            started = time.monotonic()
            try:
                yield
                self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)
            finally:
                self._slots.release()
        except asyncio.CancelledError:
            if self._closing and job.stop.shut_down:
                raise ShuttingDown(
                    "This worker is being stopped and could not finish the job in time; send it again."
                ) from None
            raise
        finally:
            del self._inside[id(job)]
            if not self._inside:
                self._empty.set()

    async def close(self, grace_s: float) -> None:
        """Take no more jobs, let those inside finish within `grace_s` seconds, and stop the rest with ShuttingDown.

        Whoever closes again waits for the same end.
        """
        if not self._closing:
            self._closing, self._closed_at = True, time.monotonic() + grace_s
        try:
            async with asyncio.timeout(max(0.0, self._closed_at - time.monotonic())):
                await self._empty.wait()
        except TimeoutError:
            for job, task in self._inside.values():
                job.stop.shut_down = True
                if task is not None:
                    task.cancel()
            await self._empty.wait()

    def check_work(self, job: Job) -> int:
        """How many pixel-steps `job` is. Raises ParameterOutOfRange when that is more than one job may be."""
        limit = self._limits.max_pixel_steps
        work = pixel_steps(job)
        if limit and work > limit:
            raise ParameterOutOfRange(
                f"The job is {work:,} pixel-steps (width x height x frames x steps x images) and this worker takes "
                f"at most {limit:,}; ask for fewer images, fewer steps or a smaller size.",
                field="num_images" if len(job.seeds) > 1 else "num_inference_steps",
                details={"pixel_steps": work, "max_pixel_steps": limit},
            )
        return work

    def check_open(self) -> None:
        """Raise ShuttingDown or Overloaded when no job is taken now."""
        if self._closing:
            raise ShuttingDown("This worker is being stopped and takes no more jobs; another worker will take it.")
        if self._slots.locked() and self._waiting >= self._limits.max_queued:
            wait_s = max(1, math.ceil(self._mean_s * (self._waiting + 1) / self._limits.max_concurrent))
            raise Overloaded(
                f"This worker has {self.running} jobs in work and {self._waiting} waiting, which is all it takes; "
                f"try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "queued": self._waiting},
            )

    async def _take_slot(self, job: Job) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(max(0.0, job.stop.remaining_s)):
                await self._slots.acquire()
        except TimeoutError:
            raise job.stop.timed_out() from None
        finally:
            self._waiting -= 1


def pixel_steps(job: Job) -> int:
    """How much work a job is: width x height x frames x steps x images, as far as it is known before it runs."""

    def number(name: str, otherwise: int) -> int:
        value = job.params.get(name)
        return int(value) if isinstance(value, int | float) and value > 0 else otherwise

    native = job.call.detection.native_size or 1024
    image = job.image
    width = number("width", image.width if image else native)
    height = number("height", image.height if image else native)
    return width * height * number("num_frames", 1) * number("num_inference_steps", 1) * len(job.seeds)
