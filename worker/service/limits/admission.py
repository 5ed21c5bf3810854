"""Admission of jobs: bounds on running jobs, queued jobs and the work of one job; none once the worker stops.

A job is inside from its first check to its last image. It needs a place only while it is at the device or waits for
it: what it waits for before, such as somebody's slow server, takes no place from others.

The rules are the worker's own and the same at every door. Limits for each caller are in `quotas.py`.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from worker.core.errors import Overloaded, ParameterOutOfRange, ShuttingDown
from worker.core.job import Job
from worker.core.turn import StopSignal, Turn, current
from worker.service.limits.key_rights import KeyRights
from worker.service.limits.places import Places

# A first guess of the seconds that a job takes, until some have run.
_FIRST_GUESS_S = 5.0
_QUESTION_S = 5  # after which a question may be asked again
SHARE = 0.75  # of all jobs inside, for one of several callers
_NEWEST = 0.2  # the weight of the last job in the running mean


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds on admitted work: `max_concurrent` jobs run, `max_queued` more wait; 0 pixel-steps is no limit."""

    max_concurrent: int = 64
    max_queued: int = 2_000
    max_pixel_steps: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Numbers of jobs that run now and that wait: for admission, for a batch or for the device."""

    running: int
    queued: int


class Admission:
    """Admits jobs. Used on one event loop. `check_device` raises while no job could run.

    `rights` has the weights of callers. Where there are several, one takes three quarters of all room at most.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        check_device: Callable[[], None] = lambda: None,
        rights: KeyRights | None = None,
    ) -> None:
        self._limits = limits
        self._check_device = check_device
        self.rights = rights or KeyRights()
        """The rights of callers."""
        self._places = Places(limits.max_concurrent, self.rights.weight)
        self._of_caller: Counter[str | None] = Counter()
        self._inside: dict[int, tuple[Turn, asyncio.Task[object] | None]] = {}
        self._questions = 0
        self._spare: StopSignal | None = None
        self._waiting = 0
        self._mean_s = _FIRST_GUESS_S
        self._closing = False
        self._closed_at = 0.0
        self.taken = 0
        """The number of jobs that were ever admitted."""
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        """The number of admitted jobs that do not wait for a place."""
        return len(self._inside) - self._waiting

    @property
    def queued(self) -> int:
        """The number of jobs that wait for admission."""
        return self._waiting

    @property
    def closing(self) -> bool:
        """True once the worker is being stopped."""
        return self._closing

    @contextmanager
    def admitted(self, turn: Turn) -> Iterator[None]:
        """Enclose one job. Raises Overloaded when too many are inside, ShuttingDown."""
        self.check_open(turn.caller)
        self._stop_spare()
        self.taken += 1
        self._of_caller[turn.caller] += 1
        self._inside[id(turn)] = (turn, asyncio.current_task())
        self._empty.clear()
        try:
            yield
        except asyncio.CancelledError:
            if self._closing and turn.stop.shut_down:
                raise ShuttingDown(
                    "This worker is being stopped and could not finish the job in time; send it again."
                ) from None
            raise
        finally:
            del self._inside[id(turn)]
            self._of_caller[turn.caller] -= 1
            if not self._of_caller[turn.caller]:
                del self._of_caller[turn.caller]
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def place(self, stop: StopSignal) -> AsyncIterator[None]:
        """Hold a place at the device, after waiting for one at most until the deadline. Raises JobTimeout."""
        caller = current().caller
        await self._take_place(stop, caller)
        started = time.monotonic()
        try:
            yield
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)
        finally:
            self._places.give_back(caller)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Enclose one question about a model: as many are taken at once as jobs. Raises Overloaded, ShuttingDown."""
        self._check_closing()
        if self._questions >= self._most:
            raise Overloaded(
                f"This worker has {self._questions} questions to answer, which is all it takes; "
                f"try again in {_QUESTION_S} seconds.",
                details={"retry_after_s": _QUESTION_S, "queued": self._questions},
            )
        self._stop_spare()
        self._questions += 1
        try:
            yield
        finally:
            self._questions -= 1

    @contextmanager
    def spare(self, stop: StopSignal) -> Iterator[bool]:
        """Enclose work that nobody waits for; False where anything else is to be done, and then it must not begin.

        It is stopped as soon as a job or a question comes, or the worker closes.
        """
        if self._inside or self._questions or self._closing or self._spare is not None:
            yield False
            return
        self._spare = stop
        try:
            yield True
        finally:
            self._spare = None

    async def close(self, grace_s: float) -> None:
        """Take no more jobs, let those inside finish within `grace_s` seconds, and stop the rest with ShuttingDown.

        A second call waits for the same end.
        """
        self._stop_spare()
        if not self._closing:
            self._closing, self._closed_at = True, time.monotonic() + grace_s
        try:
            async with asyncio.timeout(max(0.0, self._closed_at - time.monotonic())):
                await self._empty.wait()
        except TimeoutError:
            for turn, task in self._inside.values():
                turn.stop.shut_down = True
                if task is not None:
                    task.cancel()
            await self._empty.wait()

    def check_work(self, *jobs: Job) -> int:
        """Return the pixel-steps of one request's jobs. Raises ParameterOutOfRange if they exceed the limit for it."""
        limit = self._limits.max_pixel_steps
        work = sum(map(pixel_steps, jobs))
        if limit and work > limit:
            raise ParameterOutOfRange(
                f"The job is {work:,} pixel-steps (width x height x frames x steps x images) and this worker takes "
                f"at most {limit:,}; ask for fewer images, fewer steps or a smaller size.",
                field="num_images" if any(len(job.seeds) > 1 for job in jobs) else "num_inference_steps",
                details={"pixel_steps": work, "max_pixel_steps": limit},
            )
        return work

    def check_open(self, caller: str | None = None) -> None:
        """Raise ShuttingDown or Overloaded when no job is taken now, or none of this caller's."""
        self._check_closing()
        self._check_device()
        if len(self._inside) >= self._most:
            wait_s = max(1, math.ceil(self._mean_s * (self._waiting + 1) / self._limits.max_concurrent))
            raise Overloaded(
                f"This worker has {self.running} jobs in work and {self._waiting} waiting, which is all it takes; "
                f"try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "queued": self._waiting},
            )
        own = self._of_caller[caller]
        if caller is not None and self.rights.several and own >= max(1, int(self._most * SHARE)):
            wait_s = max(1, math.ceil(self._mean_s))
            raise Overloaded(
                f"This worker has {own} jobs of this key, which is all it takes of one; try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "queued": own},
            )

    @property
    def _most(self) -> int:
        return self._limits.max_concurrent + self._limits.max_queued

    def _stop_spare(self) -> None:
        if self._spare is not None:
            self._spare.cancel()

    def _check_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("This worker is being stopped and takes no more jobs; another worker will take it.")

    async def _take_place(self, stop: StopSignal, caller: str | None) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(max(0.0, stop.remaining_s)):
                await self._places.take(caller)
        except TimeoutError:
            raise stop.timed_out() from None
        finally:
            self._waiting -= 1


def pixel_steps(job: Job) -> int:
    """Estimate a job's work before it runs: width x height x frames x steps x images."""

    def number(name: str, default: int) -> int:
        value = job.params.get(name)
        return int(value) if isinstance(value, int | float) and value > 0 else default

    native = job.call.detection.native_size or 1024
    image = job.image
    width = number("width", image.width if image else native)
    height = number("height", image.height if image else native)
    return width * height * number("num_frames", 1) * number("num_inference_steps", 1) * len(job.seeds)
