"""The operations of a worker: one method an action, typed in and out.

`perform` is the one way in, for jobs of every door. Every job begins and ends here, so two contexts enclose it here.
Telemetry tells usage log, metrics and traces of the job once. Privacy keeps the job's words out of all log lines.
`wire.request` reads the input before, and `jobs.store` keeps jobs and answers.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from worker.core.answer import (
    Answer,
    AnyAnswer,
    Inspection,
    ModelList,
    ModelSchema,
    ModelSummary,
    PlanReport,
    Preloaded,
    TimelineReport,
    Unloaded,
    WorkerStatus,
)
from worker.core.discovery import DiscoverRequest, Discovery, Updates, UpdatesRequest
from worker.core.errors import ModelNotFound, UnsupportedModel, WorkerError
from worker.core.golden import GoldenRequest
from worker.core.job_input import JobInput, ModelRequest, VersionRequest, WorkerAction, WorkerRequest
from worker.core.request import GenerationRequest
from worker.core.result import Emit
from worker.core.training import TrainingControl, TrainingRequest
from worker.core.turn import begun, current
from worker.service.alerts.watch import Alerts
from worker.service.discovery.finder import Finder
from worker.service.discovery.golden import Comparer
from worker.service.generation import GenerationService
from worker.service.introspection.answers import DeviceAnswers
from worker.service.introspection.models import ModelIntrospection
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.record import JobRecord
from worker.service.limits.pools import Pools
from worker.service.recipes.answers import Recipes
from worker.service.training.trainings import Trainings
from worker.service.usage import request_id
from worker.service.usage.privacy import kept_in_turns
from worker.service.usage.telemetry import Telemetry, delivered
from worker.service.versions.actions import VersionActions
from worker.service.versions.pairing import Pairing

# The longest that a question about a model may take: its answer is in headers and JSON.
QUESTION_S = 60.0
# Actions that fetch and load a model, which takes as long as a job may.
_MOVING = ("preload", "unload")


@dataclass(frozen=True, slots=True)
class Operations:
    """The actions of a worker."""

    generation: GenerationService
    recipes: Recipes
    introspection: ModelIntrospection
    device: DeviceAnswers
    readiness: Readiness
    delivery: Delivery
    telemetry: Telemetry
    versions: VersionActions
    pools: Pools
    discovery: Finder
    timeout_s: float = 600.0
    """The most that anything asked for may take, but for trainings."""
    trainings: Trainings | None = None
    """None where nothing may be trained."""
    alerts: Alerts = field(default_factory=Alerts)
    pairing: Pairing | None = None
    """None where no pairs are generated."""
    comparer: Comparer | None = None
    """None where no two versions can be generated with."""

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
                    error.details["supported_models"] = [model.id for model in self.served_models(caller)]
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
        if (recipe := self.recipes.find(request.model)) is not None:
            self.generation.check_rights(request, caller)
            result = await self.recipes.generate(recipe, request, job_id, emit, caller)
        else:
            result = await self.generation.generate(request, job_id, emit, caller)
        result = replace(result, warnings=(*notes, *result.warnings))
        answer = await delivery.deliver(result, request.output, job_id, self.pools)
        delivered(answer)
        if self.pairing is not None:
            self.pairing.offer(self.generation.acceptor.resolver.registered_id(request.model), request, result)
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

    def models(self, caller: str | None = None) -> ModelList:
        """List what `caller` may use of the registry."""
        rights = self.generation.admission.rights
        return ModelList(tuple(each for each in self.introspection.models().models if rights.may_use(caller, each.id)))

    def served_models(self, caller: str | None = None) -> tuple[ModelSummary, ...]:
        """List the registered models that this version can run and `caller` may use."""
        return tuple(model for model in self.models(caller).models if model.served)

    async def schema(self, model: str | None) -> ModelSchema:
        """Describe a request for `model`."""
        recipe = self.recipes.find(model)
        return await self.introspection.schema(model) if recipe is None else self.recipes.schema(recipe)

    async def inspect(self, model: str | None) -> Inspection:
        """Detect what `model` is, with the evidence."""
        return await self.introspection.inspect(model)

    async def plan(self, model: str | None) -> PlanReport:
        """Plan a run of `model` on this worker's device."""
        recipe = self.recipes.find(model)
        return await (self.device.plan(model) if recipe is None else self.recipes.plan(recipe))

    async def discover(self, wish: DiscoverRequest, caller: str | None) -> Discovery:
        """Find what others publish and this worker can run."""
        return await self.discovery.discover(wish, caller)

    async def updates(self, model: str | None, caller: str | None) -> Updates:
        """Say what is newer of one model of models.yaml, or of all of them."""
        return await self.discovery.updates(model, caller)

    def status(self) -> WorkerStatus:
        """Report if the worker is ready, what it runs, what is resident, and which models cannot be had."""
        status, problems = self.device.status(), self.readiness.problems()
        state = "failed" if problems and status.status != "lost" else status.status
        return replace(status, status=state, problems=problems, alerts=self.alerts.firing)

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
        """Refuse a generation or a training at the door if it, or every one of its caller, would be refused.

        Raises AccessDenied, Overloaded and its subclasses, ShuttingDown.
        """
        if isinstance(record.job.request, GenerationRequest):
            self.generation.check_rights(record.job.request, record.caller)
        elif isinstance(record.job.request, TrainingRequest):
            self.generation.check_right(record.job.request.model, record.caller)
        if record.job.action in ("generate", "train"):
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
            case VersionRequest() as asked:
                turn = current()
                turn.stop.limit(self.timeout_s)
                with turn.working():  # whatever the load: a rollback has to be possible just then
                    return await self.pools.own.run(self.versions.perform, asked, caller, turn.stop)
            case GoldenRequest() as golden:
                return await self._compare(golden, job_id, emit, caller)
            case TrainingRequest() | TrainingControl() as training:
                return await self._train(training, emit, caller)
            case ModelRequest() | DiscoverRequest() | UpdatesRequest() as question:
                self._check_right(question, caller)
                self.generation.charge_question(caller)
                turn = current()
                moves = isinstance(question, ModelRequest) and question.action in _MOVING
                turn.stop.limit(self.timeout_s if moves else min(QUESTION_S, self.timeout_s))
                with self.generation.admission.asked(), turn.working():
                    match question:
                        case DiscoverRequest():
                            return await self.discover(question, caller)
                        case UpdatesRequest(model):
                            return await self.updates(model, caller)
                    return await self._ask(question, emit)
        raise RuntimeError("a job that is over was run again")

    async def _compare(self, request: GoldenRequest, job_id: str, emit: Emit, caller: str | None) -> AnyAnswer:
        self.generation.check_right(request.model, caller)
        if self.comparer is None:
            raise UnsupportedModel("golden prompts are not compared here; ask a worker with a device.", field="action")
        current().stop.limit(self.timeout_s)
        return await self.comparer.compare(request, job_id, emit, caller)

    async def _train(self, request: TrainingRequest | TrainingControl, emit: Emit, caller: str | None) -> AnyAnswer:
        if isinstance(request, TrainingRequest):
            self.generation.check_right(request.model, caller)
        if self.trainings is None:
            raise UnsupportedModel(
                "training is off: this worker trains nothing; let its operator set TRAINING to shared "
                "or exclusive, or send it to a worker that trains.",
                field="action",
            )
        if isinstance(request, TrainingControl):
            with current().working():  # whatever the load, and free as a job's status is
                return await self.trainings.watch(request, caller)
        if request.action == "train":
            return await self.trainings.train(request, emit, caller)
        self.generation.charge_question(caller)
        with self.generation.admission.asked(), current().working():
            return await self.trainings.plan(request)

    def _told(self, action: WorkerAction, caller: str | None) -> AnyAnswer:
        match action:
            case "models":
                return self.models(caller)
            case "timeline":
                return self.timeline(caller)
            case "status":
                return self.status()

    def _check_right(self, question: ModelRequest | DiscoverRequest | UpdatesRequest, caller: str | None) -> None:
        """Raise AccessDenied for a question about a model that is not the caller's; about all for all of them."""
        if isinstance(question, ModelRequest):
            self.generation.check_right(question.model, caller)
        elif isinstance(question, UpdatesRequest):
            self.generation.check_right(question.model or "*", caller)

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
