"""The one thread that owns the engine, and with it the device."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Protocol, TypeVar

from worker.core import moments
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import DeviceLost, contained
from worker.core.job import Batch
from worker.core.model import ModelFiles
from worker.core.ports import Engine
from worker.core.quality import LeverReport
from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal
from worker.service.local.watchdog import Watchdog

T = TypeVar("T")
_LOOK_EVERY_S = 0.5


class ResidentEngine(Engine, Protocol):
    """The engine as its thread knows it: batches, and the operator's actions."""

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        ...

    def holds(self, batch: Batch) -> bool:
        """True if all models of a batch are on the device. Asked from other threads."""
        ...

    def device_info(self, *, cards: bool = False) -> DeviceInfo:
        """Return the device's name and memory, as of now; with those of all GPUs of this process if asked."""
        ...

    def preload(self, model: KnownModel, files: ModelFiles, emit: Emit) -> LoadPlan:
        """Make a model resident."""
        ...

    def unload(self, model: str) -> int:
        """Drop a model from the device, and return how many were dropped."""
        ...

    @property
    def levers(self) -> tuple[LeverReport, ...]:
        """What was decided of ways to generate faster, for the models on the device."""
        ...

    def improve(self, stop: StopSignal, emit: Emit) -> bool:
        """Try one way to generate faster; False where there is nothing to try. Stops at its next step if told to."""
        ...


class EngineThread:
    """Owns the engine: builds it in its one thread, runs one piece of work at a time, and notes a lost device.

    `silence_s` is the longest that the engine may take without a sign of life before `watchdog` complains. `probe`
    tells of the device without an engine, whose libraries take seconds to import.
    """

    def __init__(
        self,
        build: Callable[[], ResidentEngine],
        silence_s: float = 300.0,
        probe: Callable[[bool], DeviceInfo] | None = None,
    ) -> None:
        self._build = build
        self._probe = probe
        self._engine: ResidentEngine | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.lost: DeviceLost | None = None
        self.running: str | None = None
        self.watchdog = Watchdog(silence_s)
        self._aside: StopSignal | None = None

    @property
    def levers(self) -> tuple[LeverReport, ...]:
        """What was decided of ways to generate faster, for the models on the device."""
        return self._engine.levers if self._engine else ()

    @property
    def obstacle(self) -> str | None:
        """A sentence about an engine that takes no work: lost, or silent for too long; None of one that does."""
        return self.lost.message if self.lost is not None else self.watchdog.complaint

    @property
    def ready(self) -> bool:
        """True once the engine is built."""
        return self._engine is not None

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        return self._engine.resident_models if self._engine else []

    def holds(self, batch: Batch) -> bool:
        """True if all models of a batch are on the device."""
        return self._engine is not None and self._engine.holds(batch)

    def submit(
        self, work: Callable[[ResidentEngine], T], label: str, begin: Callable[[], None] = lambda: None
    ) -> "Future[T]":
        """Queue `work` for the engine's thread; `begin` is called there first. Raises DeviceLost.

        A future that has not begun can be cancelled.
        """
        if self.lost is not None:
            raise self.lost
        if self._aside is not None:
            self._aside.cancel()
        # With the caller's context: log lines of the engine's thread carry their request id.
        return self._executor.submit(copy_context().run, self._call, work, label, begin)

    def submit_aside(self, closing: Callable[[], bool]) -> "Future[bool]":
        """Queue one try of a way to generate faster. It stops at its next step once work is submitted, or `closing`.

        Raises DeviceLost.
        """
        stop = StopSignal()

        def tell(progress: Progress) -> None:
            if closing():
                stop.cancel()
            self.watchdog.hear(progress, work="improve")

        def work(engine: ResidentEngine) -> bool:
            stop.check()
            return engine.improve(stop, tell)

        future = self.submit(work, "trying to generate faster")
        self._aside = stop
        return future

    async def call(self, work: Callable[[ResidentEngine], T], label: str) -> T:
        """Run `work` in the engine's thread and return its result. Raises DeviceLost once the device is lost."""
        future = asyncio.wrap_future(self.submit(work, label))
        try:
            while not future.done():
                await asyncio.wait({future}, timeout=_LOOK_EVERY_S)
                if self.lost is not None and not future.done():
                    raise self.lost  # the thread hangs in this very work
            return future.result()
        except asyncio.CancelledError:
            future.cancel()
            task = asyncio.current_task()
            if self.lost is None or (task is not None and task.cancelling()):
                raise
            raise self.lost from None  # it waited behind the job that hung

    async def device_info(self, *, cards: bool = False) -> DeviceInfo:
        """Return the device's name and memory, as of now, and with `cards` those of all GPUs of this process.

        No engine is built for that. Raises DeviceLost.
        """
        if self._engine is not None or self._probe is None:
            return await self.call(lambda engine: engine.device_info(cards=cards), "plan")
        if self.lost is not None:
            raise self.lost
        return await asyncio.wrap_future(self._executor.submit(self._probe, cards))

    def _call(self, work: Callable[[ResidentEngine], T], label: str, begin: Callable[[], None]) -> T:
        if self.lost is not None:
            raise self.lost
        self.running = label
        self.watchdog.begin(builds=self._engine is None)
        try:
            begin()
            if self._engine is None:
                self._engine = self._build()
                moments.note("engine built")
                self.watchdog.begin(builds=False)
            return work(self._engine)
        except DeviceLost as error:
            raise self.lose(error) from None
        except BaseException as error:
            raise contained(error) from error
        finally:
            self.running = None
            self.watchdog.end()

    def lose(self, error: DeviceLost) -> DeviceLost:
        """Declare the device lost: nothing more runs, and work behind a hung step is cancelled."""
        self.lost = self.lost or error
        self._executor.shutdown(wait=False, cancel_futures=True)
        return self.lost


async def uninterrupted(work: Awaitable[T]) -> T:
    """Await `work` to its end, even if cancelled meanwhile: a thread cannot be cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()
