"""A worker as a Ray Serve deployment of one replica: the job is a streaming call, and its updates are the stream.

Serve starts the replica for its first call, stops it once nothing came for a while, and starts another in the place of
one that died. A call to a node that was lost hangs: so the stream is never silent for long, and silence ends it here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from pydantic import JsonValue
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.remote.platforms.outcomes import answered, called, finished, lost
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question, input_of
from worker.remote.platforms.under_way import deadline_of
from worker.remote.replica import ReplicaState
from worker.wire.receiving import decode_progress

# A replica says something at least every 5 seconds once it has the job (worker/transport/called.py).
SILENCE_S = 20.0
# How long a replica may take to answer when it is asked for a job that it may have.
RECONCILE_S = 15.0


class Calls(Protocol):
    """A deployment as it is called: Serve's handle, with `stream=True`."""

    def __call__(self, job: dict[str, JsonValue]) -> Any:
        """Begin a job; the result is iterated over, and cancelled."""
        ...


class RayDeployment:
    """One deployment. `facts` are the operator's, `look` returns how many replicas it has; for one event loop."""

    def __init__(
        self,
        facts: ReplicaState,
        calls: Calls,
        look: Callable[[], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts = facts
        self._calls = calls
        self._look = look
        self._clock = clock

    @property
    def name(self) -> str:
        """The name of the deployment."""
        return self._facts.name

    def state(self) -> ReplicaState:
        """Return the state as it was last observed."""
        return self._facts

    async def observe(self) -> ReplicaState:
        """Ask Serve how many replicas the deployment has. That wakes none."""
        try:
            running = await self._look()
        except (RayError, RayServeException, TimeoutError):
            self._facts = replace(self._facts, health="resting")
            return self._facts
        self._runs(running > 0)
        return self._facts

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Call the replica with `job`. See `Platform.send`."""
        async with deadline_of(job):
            return finished(self.name, await self._follow(job, key, emit, first_s=None))

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Call the replica with `question`. See `Platform.ask`."""
        async with deadline_of(question):
            return answered(self.name, await self._follow(question, key, emit, first_s=None))

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Call for the same job again: a replica that has it goes on telling of it. See `Platform.reconcile`."""
        async with deadline_of(job):
            return finished(self.name, await self._follow(job, key, emit, first_s=RECONCILE_S))

    async def close(self) -> None:
        """Do nothing: Ray holds the connections."""

    async def _follow(
        self, job: Job | Question, key: str, emit: Emit, first_s: float | None
    ) -> Mapping[str, JsonValue]:
        """Return the end of the job. `first_s` bounds the wait for the first sign of life: None for a cold start."""
        updates = self._calls({"id": key, "input": input_of(job)})
        began, was_warm = self._clock(), self._facts.warm
        heard = False
        try:
            async for update in _each(updates, first_s):
                if not heard:
                    heard = True
                    self._runs(True)
                    if not was_warm:
                        self._facts = replace(self._facts, cold_start_s=self._clock() - began)
                if "answer" in update:
                    return called(update["answer"])
                if (progress := decode_progress(update.get("progress"))) is not None:
                    emit(progress)
        except RayActorError as error:  # its process is gone, and with it the job
            self._runs(False)
            raise NotTaken(lost(self.name)) from error
        except _Silence as error:
            raise LostSight(lost(self.name)) from error
        except (RayError, RayServeException) as error:
            raise (LostSight if heard else NotTaken)(lost(self.name)) from error
        finally:
            updates.cancel()  # nothing once it is over
        raise NotTaken(lost(self.name))

    def _runs(self, warm: bool) -> None:
        """Note whether the replica runs."""
        self._facts = replace(self._facts, health="well", warm=warm)


class _Silence(Exception):
    """A replica that has a job, and said nothing for too long."""


async def _each(updates: Any, first_s: float | None) -> AsyncGenerator[dict[str, JsonValue], None]:
    """Yield updates. Raises _Silence."""
    within_s = first_s
    while True:
        try:
            async with asyncio.timeout(within_s):
                update = await anext(updates, None)
        except TimeoutError:
            raise _Silence from None
        if update is None:
            return
        yield update
        within_s = SILENCE_S
