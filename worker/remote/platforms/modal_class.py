"""A class of containers at Modal: a job is one call of its `generate`, which wakes a container if none is awake.

The call is spawned: so it has an id, by which it is asked for, and taken back even while its container is still
starting. Modal keeps the result of such a call for a week. Its progress comes through a queue of Modal's that lives as
long as the gateway.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import modal
import modal.exception
from pydantic import JsonValue

from worker.core.errors import Overloaded
from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.remote.platforms.outcomes import answered, called, finished, lost
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question, input_of
from worker.remote.platforms.under_way import UnderWay
from worker.remote.replica import ReplicaState
from worker.wire.receiving import decode_progress

# Modal refuses these before a call exists.
_REFUSALS = (
    modal.exception.AuthError,
    modal.exception.PermissionDeniedError,
    modal.exception.NotFoundError,
    modal.exception.InvalidError,
    modal.exception.RequestSizeError,
)
# The container died, or gave up: nothing runs for the call any more.
_DEATHS = (modal.exception.InternalFailure, modal.exception.RemoteError, modal.exception.ExecutionError)
_UPDATE_WAIT_S = 20.0
_FAREWELL_S = 5.0


class ModalClass:
    """One class, `cls`, as a tier. `facts` are the operator's; for one event loop."""

    def __init__(self, cls: Any, facts: ReplicaState) -> None:
        self._instance = cls()
        self._facts = facts
        self._jobs = UnderWay[Any](_take_back)  # by their calls
        self._queue: Any = None
        self._queue_context: Any = None
        self._queue_lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """The name of the class."""
        return self._facts.name

    def state(self) -> ReplicaState:
        """Return the state as it was last observed."""
        return self._facts

    async def observe(self) -> ReplicaState:
        """Ask Modal how many containers the class has, and how much waits for them. That wakes none."""
        try:
            stats = await self._instance.generate.get_current_stats.aio()
        except (modal.exception.Error, OSError):
            self._facts = replace(self._facts, health="resting")
            return self._facts
        containers = stats.num_total_runners
        self._facts = replace(
            self._facts,
            health="well",
            workers=containers,
            warm=containers > 0,
            jobs_running=stats.num_running_inputs,
            jobs_queued=stats.backlog,
        )
        return self._facts

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Call the class with `job`, and wait for its answer. See `Platform.send`."""
        async with self._jobs.bracket(job, key):
            call = await self._spawn(job, key)
            return finished(self.name, await self._follow(call, job, key, emit))

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Call the class with `question`, and wait for its answer. See `Platform.ask`."""
        async with self._jobs.bracket(question, key, last=True):
            call = await self._spawn(question, key)
            return answered(self.name, await self._follow(call, question, key, emit))

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Ask for the call of `key` by its id. See `Platform.reconcile`."""
        async with self._jobs.bracket(job, key, last=True):
            if (call := self._jobs[key]) is None:  # the id was lost with the answer, and a call has no other name
                raise LostSight(lost(self.name))
            return finished(self.name, await self._follow(call, job, key, emit))

    async def close(self) -> None:
        """Let go of the queue of updates, once jobs that were given up are taken back."""
        await self._jobs.close(_FAREWELL_S)
        context, self._queue, self._queue_context = self._queue_context, None, None
        if context is not None:
            with suppress(modal.exception.Error, OSError):
                await context.__aexit__(None, None, None)

    async def _spawn(self, job: Job | Question, key: str) -> Any:
        """Begin a call, and return it."""
        updates = await self._updates() if _tells(job) else None
        try:
            call = await self._instance.generate.spawn.aio({"id": key, "input": input_of(job)}, updates)
        except modal.exception.ResourceExhaustedError as error:
            raise NotTaken(Overloaded("Modal takes no more jobs now; come again later."), ill=False) from error
        except _REFUSALS as error:
            raise NotTaken(lost(self.name)) from error
        except (modal.exception.Error, OSError) as error:
            raise LostSight(lost(self.name)) from error
        self._jobs[key] = call
        return call

    async def _follow(self, call: Any, job: Job | Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Wait for a call's end, and return it."""
        told = asyncio.create_task(self._tell(key, emit)) if _tells(job) and self._queue is not None else None
        try:
            answer = await call.get.aio()
        except modal.exception.OutputExpiredError as error:
            raise NotTaken(lost(self.name)) from error
        except modal.exception.TimeoutError as error:  # the class's own bound on a call
            raise job.stop.timed_out() from error
        except _DEATHS as error:
            raise NotTaken(lost(self.name)) from error
        except (modal.exception.Error, OSError) as error:
            raise LostSight(lost(self.name)) from error
        finally:
            if told is not None:
                told.cancel()
        return called(answer)

    async def _updates(self) -> Any:
        """Return the queue of updates; None if Modal gives none, which is no reason to draw nothing."""
        async with self._queue_lock:
            if self._queue is None:
                context = modal.Queue.ephemeral()
                with suppress(modal.exception.Error, OSError):
                    self._queue = await context.__aenter__()
                    self._queue_context = context
        return self._queue

    async def _tell(self, key: str, emit: Emit) -> None:
        """Pass a job's progress on, until this is cancelled."""
        with suppress(modal.exception.Error, OSError):
            while self._queue is not None:
                for update in await self._queue.get_many.aio(64, timeout=_UPDATE_WAIT_S, partition=key):
                    if (progress := decode_progress(update.get("progress"))) is not None:
                        emit(progress)


def _tells(job: Job | Question) -> bool:
    return isinstance(job, Job) and job.request.progress


async def _take_back(call: Any) -> None:
    with suppress(modal.exception.Error, OSError, TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await call.cancel.aio()
