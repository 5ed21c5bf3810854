"""The operations of a worker: one method an action, typed in and out.

`perform` is the one way in, for jobs of every door. Every job begins and ends here, so two contexts enclose it here.
Telemetry tells usage log, metrics and traces of the job once. Privacy keeps the job's words out of all log lines.
`wire.request` reads the input before, and `jobs.store` keeps jobs and answers.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from worker.core.answer import (
    Answer,
    AnyAnswer,
    Inspection,
    ModelList,
    ModelSchema,
    PlanReport,
    Preloaded,
    TimelineReport,
    Unloaded,
    WorkerStatus,
)
from worker.core.errors import ModelNotFound, WorkerError
from worker.core.job_input import JobInput, ModelRequest, WorkerAction, WorkerRequest
from worker.core.request import GenerationRequest
from worker.core.result import Emit
from worker.core.turn import begun, current
from worker.service.generation import GenerationService
from worker.service.introspection.answers import DeviceAnswers
from worker.service.introspection.models import ModelIntrospection
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.record import JobRecord
from worker.service.limits.pools import Pools
from worker.service.usage import request_id
from worker.service.usage.privacy import kept_in_turns
from worker.service.usage.telemetry import Telemetry, delivered

# The longest that a question about a model may take: its answer is in headers and JSON.
QUESTION_S = 60.0
# Actions that fetch and load a model, which takes as long as a job may.
_MOVING = ("preload", "unload")


@dataclass(frozen=True, slots=True)
class Operations:
    """The actions of a worker."""

    generation: GenerationService
    introspection: ModelIntrospection
    device: DeviceAnswers
    readiness: Readiness
    delivery: Delivery
    telemetry: Telemetry
    pools: Pools
    timeout_s: float = 600.0
    """The most that anything asked for may take."""

    async def perform(self, job: JobInput, job_id: str, emit: Emit, caller: str | None = None) -> AnyAnswer:
        """Answer one input. Raises WorkerError, and CancelledError when the caller cancelled the job.

        `caller` is the name of the sender as the door knows it, for their quotas.
        """
        parent = request_id.traceparent.get()
        with (
            begun(caller) as turn,
            self.telemetry.operation(job_id, request_id.current.get(), caller, parent) as operation,
        ):
            if (sent_parent := request_id.accept_trace(job.traceparent)) is not None:
                operation.traceparent = sent_parent
                request_id.traceparent.set(sent_parent)
            operation.asks(job.action, job.named_model)
            try:
                async with kept_in_turns(job.request):
                    return await self._answer(job, job_id, emit, caller)
            except ModelNotFound as error:
                if error.field == "model":  # and not an adapter or another part
                    error.details["supported_models"] = [model.id for model in self.introspection.served_models()]
                raise
            except asyncio.CancelledError:
                turn.stop.cancel()  # what still runs for it in a thread ends by itself
                raise

    async def generate(
        self,
        request: GenerationRequest,
        job_id: str,
        emit: Emit,
        caller: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> Answer:
        """Accept and run one generation, and encode its result; `notes` come before its own warnings."""
        current().stop.limit(min(self.timeout_s, request.timeout_s or self.timeout_s))
        delivery = self.delivery.of(request)
        await delivery.check(request.output, self.pools)
        result = await self.generation.generate(request, job_id, emit, caller)
        result = replace(result, warnings=(*notes, *result.warnings))
        answer = await delivery.deliver(result, request.output, job_id, self.pools)
        delivered(answer)
        return answer

    async def deliver_elsewhere(
        self, answer: AnyAnswer, request: GenerationRequest, job_id: str, reason: str
    ) -> Answer | None:
        """Return an answer that its door could not send, with its files in the bucket or on the volume.

        None without either, and for an answer without files. `reason` stands among the warnings.
        """
        if not isinstance(answer, Answer):
            return None
        return await self.delivery.of(request).elsewhere(answer, job_id, reason, self.pools)

    def models(self) -> ModelList:
        """List the registry."""
        return self.introspection.models()

    async def schema(self, model: str | None) -> ModelSchema:
        """Describe a request for `model`."""
        return await self.introspection.schema(model)

    async def inspect(self, model: str | None) -> Inspection:
        """Detect what `model` is, with the evidence."""
        return await self.introspection.inspect(model)

    async def plan(self, model: str | None) -> PlanReport:
        """Plan a run of `model` on this worker's device."""
        return await self.device.plan(model)

    def status(self) -> WorkerStatus:
        """Report if the worker is ready, what it runs, what is resident, and which models cannot be had."""
        status, problems = self.device.status(), self.readiness.problems()
        state = "failed" if problems and status.status != "lost" else status.status
        return replace(status, status=state, problems=problems)

    def timeline(self, caller: str | None) -> TimelineReport:
        """Report where the seconds of this process's start and of the caller's last jobs went."""
        return self.telemetry.timeline.report(caller)

    async def preload(self, model: str | None, emit: Emit) -> Preloaded:
        """Fetch `model` and put it on the device."""
        return await self.device.preload(model, emit)

    async def unload(self, model: str | None) -> Unloaded:
        """Take `model` off the device."""
        return await self.device.unload(model)

    def admit(self, record: JobRecord) -> None:
        """Refuse a generation at the door if every generation of its caller would be refused.

        Raises Overloaded and its subclasses, ShuttingDown.
        """
        if record.job.action == "generate":
            self.generation.check_open(record.caller)

    def refuse(self, record: JobRecord, error: WorkerError) -> None:
        """Log a job that was refused before its input was read."""
        self.telemetry.refuse(record.id, request_id.current.get(), record.caller, error)

    def deny(self, caller: str | None, error: WorkerError) -> None:
        """Log a request that was turned away at the door."""
        self.telemetry.deny(request_id.current.get(), caller, error)

    @contextmanager
    def repeated(self, record: JobRecord) -> Iterator[None]:
        """Log a job that was delivered again and is answered by the first delivery's work."""
        parent = request_id.traceparent.get()
        with self.telemetry.operation(record.id, request_id.current.get(), record.caller, parent) as operation:
            operation.traceparent = request_id.accept_trace(record.job.traceparent) or parent
            operation.asks(record.job.action, record.job.named_model)
            yield

    async def _answer(self, job: JobInput, job_id: str, emit: Emit, caller: str | None) -> AnyAnswer:
        match job.request:
            case WorkerError() as refusal:
                raise refusal
            case GenerationRequest() as request:
                return await self.generate(request, job_id, emit, caller, job.notes)
            case WorkerRequest(action):
                self.generation.charge_question(caller)
                return self._told(action, caller)
            case ModelRequest():
                self.generation.charge_question(caller)
                turn = current()
                turn.stop.limit(self.timeout_s if job.request.action in _MOVING else min(QUESTION_S, self.timeout_s))
                with self.generation.admission.asked(), turn.working():
                    return await self._ask(job.request, emit)
        raise RuntimeError("a job that is over was run again")

    def _told(self, action: WorkerAction, caller: str | None) -> AnyAnswer:
        match action:
            case "models":
                return self.models()
            case "timeline":
                return self.timeline(caller)
            case "status":
                return self.status()

    async def _ask(self, request: ModelRequest, emit: Emit) -> AnyAnswer:
        model = request.model
        match request.action:
            case "schema":
                return await self.schema(model)
            case "inspect":
                return await self.inspect(model)
            case "plan":
                return await self.plan(model)
            case "preload":
                return await self.preload(model, emit)
            case "unload":
                return await self.unload(model)
