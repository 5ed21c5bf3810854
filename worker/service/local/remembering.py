"""A backend that notes which combinations of models.yaml worked on this device, and which failed."""

import asyncio
from contextvars import Context

from worker.core.errors import IncompatibleAdapter, InvalidOutput, LoadFailed, OutOfMemory, WorkerError
from worker.core.job import Job
from worker.core.ports import Backend
from worker.core.result import Emit, JobResult
from worker.service.accepting.resolving import ModelResolver
from worker.service.local.engine_thread import EngineThread
from worker.service.usage.worked import OK, Combination, Worked

# Failures that are of the combination, and would be of the next job too.
_TELLING = (LoadFailed, OutOfMemory, InvalidOutput, IncompatibleAdapter)


class RememberingBackend:
    """Has another backend generate, and notes the outcome of what came as far as the engine.

    The engine's device is asked once, after the first such job.
    """

    def __init__(self, backend: Backend, resolver: ModelResolver, worked: Worked, engine: EngineThread) -> None:
        self._backend, self._resolver, self._worked, self._engine = backend, resolver, worked, engine
        self._name: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # a task that nobody holds may vanish

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job` to its result."""
        try:
            result = await self._backend.generate(job, emit)
        except _TELLING as error:
            self._remember(job, error.code)
            raise
        if job.generates:
            self._remember(job, OK)
        return result

    def _remember(self, job: Job, outcome: str) -> None:
        """Note an outcome; the first one later, since nobody shall wait for the device to be asked its name."""
        if not self._engine.ready:  # refused before there was an engine, which is not made to be asked
            return
        if self._name is not None:
            self._note(job, outcome, self._name)
            return
        task = asyncio.get_running_loop().create_task(self._note_first(job, outcome), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note_first(self, job: Job, outcome: str) -> None:
        try:
            self._name = (await self._engine.device_info()).name
        except WorkerError:  # the device is lost: that is said elsewhere
            return
        self._note(job, outcome, self._name)

    def _note(self, job: Job, outcome: str, device: str) -> None:
        registry = self._resolver.registry
        adapters = [self._resolver.adapter_named(adapter.spec.model) for adapter in job.adapters]
        if job.call.spec.id not in registry.models or None in adapters:
            return
        ids = tuple(sorted(filter(None, adapters)))
        self._worked.note(Combination(job.call.spec.id, ids, device), outcome)
