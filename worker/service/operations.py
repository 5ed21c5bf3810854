"""Everything that can be asked of a worker: one method an action, typed in and out.

`perform` is the one way in, for jobs of every door. The two brackets around a job stand here, because here is where
every job begins and ends: the one of telemetry, in which usage, metrics and traces learn of it once, and the one of
privacy, in which no log line holds its words. What no job can come to is decided before: reading the input is
`wire.request`'s, keeping jobs and answers is `jobs.store`'s.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.core.answer import (
    Answer,
    AnyAnswer,
    Inspection,
    ModelList,
    ModelSchema,
    PlanReport,
    Preloaded,
    Unloaded,
    WorkerStatus,
)
from worker.core.errors import ModelNotFound, WorkerError
from worker.core.job_input import JobInput, ModelRequest, WorkerRequest
from worker.core.request import GenerationRequest
from worker.core.result import Emit
from worker.service.generation import GenerationService
from worker.service.introspection.device import DeviceIntrospection
from worker.service.introspection.models import ModelIntrospection
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.record import JobRecord
from worker.service.usage import request_id
from worker.service.usage.privacy import kept
from worker.service.usage.telemetry import Telemetry, delivered


@dataclass(frozen=True, slots=True)
class Operations:
    """Everything that a worker does when it is asked."""

    generation: GenerationService
    introspection: ModelIntrospection
    device: DeviceIntrospection
    delivery: Delivery
    telemetry: Telemetry

    async def perform(self, job: JobInput, job_id: str, emit: Emit, caller: str | None = None) -> AnyAnswer:
        """Answer one input. Raises WorkerError, and CancelledError when the caller took the job back.

        `caller` is whoever a door knows to have sent it, for his quotas.
        """
        traced = request_id.traceparent.get()
        with (
            kept(job.request),
            self.telemetry.operation(job_id, request_id.current.get(), caller, traced) as operation,
        ):
            if (sent := request_id.accept_trace(job.traceparent)) is not None:
                operation.traceparent = sent
                request_id.traceparent.set(sent)
            operation.asks(job.action, job.named_model)
            try:
                return await self._answer(job, job_id, emit, caller)
            except ModelNotFound as error:
                if error.field == "model":  # and not an adapter or another part
                    error.details["supported_models"] = [model.id for model in self.introspection.served_models()]
                raise

    async def generate(self, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None) -> Answer:
        """Accept and run one generation, and encode what came of it."""
        delivery = self.delivery.of(request)
        if delivery.bucket is None:
            delivery.check(request.output)
        else:  # whose address is looked up
            await asyncio.to_thread(delivery.check, request.output)
        result = await self.generation.generate(request, job_id, emit, caller)
        answer = await asyncio.to_thread(delivery.deliver, result, request.output, job_id)
        delivered(answer)
        return answer

    def models(self) -> ModelList:
        """List the registry."""
        return self.introspection.models()

    async def schema(self, model: str | None) -> ModelSchema:
        """Describe a request for `model`."""
        return await self.introspection.schema(model)

    async def inspect(self, model: str | None) -> Inspection:
        """Tell what `model` is and how that is known."""
        return await self.introspection.inspect(model)

    async def plan(self, model: str | None) -> PlanReport:
        """Tell what running `model` here would take."""
        return await self.device.plan(model)

    def status(self) -> WorkerStatus:
        """Tell whether the worker is ready, what it runs and what is resident."""
        return self.device.status()

    async def preload(self, model: str | None, emit: Emit) -> Preloaded:
        """Fetch `model` and put it on the device."""
        return await self.device.preload(model, emit)

    async def unload(self, model: str | None) -> Unloaded:
        """Take `model` off the device."""
        return await self.device.unload(model)

    def admit(self, record: JobRecord) -> None:
        """Turn a generation away at the door that would be turned away inside, whatever it is.

        Raises Overloaded and its kin, ShuttingDown.
        """
        if record.job.action == "generate":
            self.generation.check_open(record.caller)

    def refuse(self, record: JobRecord, error: WorkerError) -> None:
        """Put a job into the books that was turned away before anybody looked into it."""
        self.telemetry.refuse(record.id, request_id.current.get(), record.caller, error)

    @contextmanager
    def repeated(self, record: JobRecord) -> Iterator[None]:
        """Put a job into the books that was delivered again and is answered by the first delivery's work."""
        traced = request_id.traceparent.get()
        with self.telemetry.operation(record.id, request_id.current.get(), record.caller, traced) as operation:
            operation.traceparent = request_id.accept_trace(record.job.traceparent) or traced
            operation.asks(record.job.action, record.job.named_model)
            yield

    async def _answer(self, job: JobInput, job_id: str, emit: Emit, caller: str | None) -> AnyAnswer:
        match job.request:
            case WorkerError() as refusal:
                raise refusal
            case GenerationRequest() as request:
                return await self.generate(request, job_id, emit, caller)
            case WorkerRequest("models"):
                return self.models()
            case WorkerRequest():
                return self.status()
            case ModelRequest("schema", model):
                return await self.schema(model)
            case ModelRequest("inspect", model):
                return await self.inspect(model)
            case ModelRequest("plan", model):
                return await self.plan(model)
            case ModelRequest("preload", model):
                return await self.preload(model, emit)
            case ModelRequest("unload", model):
                return await self.unload(model)
        raise RuntimeError("a job that is over was run again")
