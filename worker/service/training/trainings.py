"""Trainings as jobs: the operator's switch, one at a time, quota, time and money, the name, the answer.

A training is admitted as a job is, and costs its caller the pixel-steps that it learnt. It has no `timeout_s`: it ends
after its minutes with a checkpoint, and the same request goes on from there, on any worker of the volume.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Protocol

from worker.catalog.call import Model
from worker.catalog.interface.precisions import for_training
from worker.catalog.interface.sizes import size_bounds
from worker.core.errors import InvalidRequest, Overloaded
from worker.core.fingerprint import fingerprint
from worker.core.model import LoraSpec, ModelSpec
from worker.core.result import Emit, Progress, Usage
from worker.core.training import (
    LOOKED_AT,
    DatasetFacts,
    Trained,
    TrainingControl,
    TrainingOptions,
    TrainingOutcome,
    TrainingPlan,
    TrainingRequest,
    TrainingState,
    check_read,
)
from worker.core.tuned import in_its_place
from worker.core.turn import StopSignal, Turn, begun
from worker.service.accepting.resolving import ModelResolver
from worker.service.introspection.answers import DeviceAnswers
from worker.service.limits.admission import Admission
from worker.service.limits.quotas import Quotas, Reservation
from worker.service.training.forecast import seconds_by_serving
from worker.service.training.material import Material
from worker.service.training.memory import with_memory
from worker.service.training.publishing import FOLDER, Publishing
from worker.service.training.watching import Watching
from worker.service.usage.telemetry import trained

_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Order:
    """One training for the device.

    `on_data` is told what the dataset holds, before anything is loaded. `on_kept` gets the adapter's file at each
    checkpoint. `on_steps` is told at the end, whatever it was: the steps that are done, how many of them were before
    this stretch, and the device's seconds.
    """

    model: Model
    options: TrainingOptions
    name: str
    folder: Path
    data: Path
    minutes: float | None = None
    on_data: Callable[[DatasetFacts], None] = lambda facts: None
    on_kept: Callable[[Path], None] = lambda file: None
    on_steps: Callable[[int, int, float], None] = lambda steps, earlier, seconds: None


class Trains(Protocol):
    """The part that learns."""

    async def train(self, order: Order, emit: Emit, stop: StopSignal) -> TrainingOutcome:
        """Train, or go on. Whatever ends it, a checkpoint stays. Raises WorkerError."""
        ...

    async def plan(self, order: Order) -> TrainingPlan:
        """Say what it would take, without looking at the device."""
        ...


# Makes the version @candidate of a model's entry with other content, by the training of this name; returns its name.
Record = Callable[[ModelSpec, ModelSpec, str, StopSignal], str]


@dataclass(frozen=True, slots=True)
class TrainingRules:
    """The operator's rules: the most minutes of one job, and the price of an hour of the device in US dollars."""

    minutes: float
    usd_per_hour: float | None = None


@dataclass(slots=True)
class Trainings:
    """Runs trainings, one at a time. Used on one event loop."""

    rules: TrainingRules
    trains: Trains
    material: Material
    publishing: Publishing
    resolver: ModelResolver
    device: DeviceAnswers
    admission: Admission
    quotas: Quotas
    record: Record
    watching: Watching
    is_busy: bool = False

    async def train(self, request: TrainingRequest, emit: Emit, caller: str | None = None) -> Trained:
        """Train, or go on with a training. Raises WorkerError."""
        self.admission.check_open()
        with begun(caller) as turn, self.admission.admitted(turn), self.quotas.reserve(caller) as reservation:
            if self.is_busy:
                raise Overloaded(
                    f"This worker trains already, and does one training at a time; come again in {_RETRY_AFTER_S} "
                    "seconds.",
                    details={"retry_after_s": _RETRY_AFTER_S},
                )
            self.is_busy = True
            try:
                return await self._train(request, emit, turn, reservation)
            finally:
                self.is_busy = False

    async def plan(self, request: TrainingRequest) -> TrainingPlan:
        """Say what a training would take, and what is wrong with its data. The data is kept for the training."""
        order = await self._order(request)
        whole = for_training(order.model, order.options.precision)
        plan, report = await self.trains.plan(order), await self.device.plan_of(whole)
        plan = with_memory(plan, report, order.options)
        seconds, timed_by = plan.seconds, plan.timed_by
        if seconds is None:
            seconds = seconds_by_serving(order.model, order.options, plan, report)
            timed_by = None if seconds is None else "serving"
        usd = None if seconds is None else self._usd(seconds)
        own = request.options.unsaid(order.model.spec.training)
        return replace(plan, seconds=seconds, timed_by=timed_by, usd=usd, defaults=own)

    async def watch(self, control: TrainingControl, caller: str | None) -> TrainingState:
        """Say where a training of this caller stands, and let it fulfil a wish. Raises InvalidRequest."""
        return await self.material.pools.own.run(self.watching.answer, control, caller)

    async def _train(self, request: TrainingRequest, emit: Emit, turn: Turn, reservation: Reservation) -> Trained:
        order, stop = await self._order(request), turn.stop
        options = order.options
        await self.material.pools.own.run(self.watching.own, order.folder, turn.caller)
        entry = self._entry(request)
        side = options.resolution or size_bounds(order.model).native
        a_step = side * side * options.images_a_step
        self._check_name(order)
        self.quotas.charge(reservation, a_step * options.steps)

        def publish(file: Path) -> None:
            self.publishing.publish(order.name, options.field, file, order.model.spec.id)

        def settle(steps: int, earlier: int, seconds: float) -> None:
            learnt = a_step * (steps - earlier)
            self.quotas.charge(reservation, learnt)
            trained(Usage(seconds, 0, learnt, 0.0, 0, self._usd(seconds)))

        began = time.monotonic()

        def note_and_emit(progress: Progress) -> None:
            reservation.note(progress)
            emit(self._priced(progress, time.monotonic() - began))

        order = replace(order, minutes=self._minutes(request), on_kept=publish, on_steps=settle)
        outcome = await self.trains.train(order, note_and_emit, stop)
        if outcome.is_done:
            await self.material.pools.own.run(self.material.clear, order.folder)
        recorded = entry if outcome.is_done else None
        version = None if recorded is None else await self._recorded(recorded, order, stop)
        files, notes = await self.publishing.delivered(order.name, (outcome.file, *outcome.beside))
        return Trained(
            name=order.name,
            model=order.model.spec.id,
            field=options.field,
            trigger=options.trigger,
            steps=outcome.steps,
            of=options.steps,
            delivered=outcome.delivered,
            is_done=outcome.is_done,
            resumed_at=outcome.resumed_at,
            loss=outcome.loss,
            held_out_loss=outcome.held_out_loss,
            dataset=outcome.dataset,
            files=files,
            gpu_seconds=outcome.seconds,
            cost_usd=self._usd(outcome.seconds),
            version=version,
            next=None if outcome.is_done else _NEXT.format(steps=outcome.steps),
            warnings=(*([outcome.note] if outcome.note else []), *notes),
        )

    async def _order(self, request: TrainingRequest) -> Order:
        """Return the training for the device, with its data on the volume."""
        check_read(request.options)
        pools = self.material.pools
        spec = self.resolver.resolve(request.model)
        model = await pools.headers.run(self.resolver.known, spec, place=self.resolver.host_of(request.model))
        name, options = request.name, request.options.of_model(spec.training)
        if name is None:
            name = await pools.checks.run(_name_of, request.model_copy(update={"options": options}), spec.id)
        folder = self.material.volume / FOLDER / name
        return Order(model, options, name, folder, await self.material.laid(request.data, folder))

    def _entry(self, request: TrainingRequest) -> ModelSpec | None:
        """Return the entry whose @candidate it is to be; None where that is not asked for. Raises InvalidRequest."""
        if not request.candidate:
            return None
        entry = self.resolver.registry.find(self.resolver.resolve(request.model).id)
        if entry is None or request.options.field == "embeddings":
            raise InvalidRequest(
                "candidate is for LoRAs of models in models.yaml, and for these models trained whole: their versions "
                "have aliases; leave it out, and name what was trained in a request.",
                field="candidate",
            )
        return entry

    def _check_name(self, order: Order) -> None:
        name, field = order.name, order.options.field
        if field == "model" and self.resolver.registered_id(name) is not None:
            raise InvalidRequest(f"name {name} is that of a model in models.yaml; choose another name.", field="name")
        self.publishing.check(name, field, order.folder)

    async def _recorded(self, entry: ModelSpec, order: Order, stop: StopSignal) -> str:
        name, tuned = order.name, self.publishing.tuned.find(order.name)
        if order.options.field == "model" and tuned is not None:
            spec = in_its_place(entry, tuned[0])
        else:
            lora = LoraSpec(model=f"file:{self.publishing.place(name, 'loras').resolve()}")
            spec = entry.model_copy(update={"loras": (*entry.loras, lora)})
        return await self.material.pools.headers.run(self.record, entry, spec, name, stop)

    def _minutes(self, request: TrainingRequest) -> float:
        most = inf
        if request.max_usd is not None:
            if not self.rules.usd_per_hour:
                raise InvalidRequest(
                    "max_usd cannot be held: this worker does not know what its device costs; send minutes, or let "
                    "the operator set GPU_PRICE_PER_HOUR.",
                    field="max_usd",
                )
            most = request.max_usd / self.rules.usd_per_hour * 60
        return min(most, self.rules.minutes, request.minutes or inf)

    def _priced(self, progress: Progress, seconds: float) -> Progress:
        """Add to progress what it cost, if the device did nothing else meanwhile."""
        usd = self._usd(seconds)
        if progress.phase != "train" or usd is None:
            return progress
        return replace(progress, message=f"{progress.message}, at most ${usd:.4f} so far")

    def _usd(self, seconds: float) -> float | None:
        price = self.rules.usd_per_hour
        return None if price is None else seconds / 3600 * price


_NEXT = "It stopped after step {steps}, with a checkpoint; send the same request again, and it goes on from there."


def _name_of(request: TrainingRequest, model: str) -> str:
    """Return a name by all that tells one training from another."""
    options = request.options.model_dump(mode="json", exclude={*LOOKED_AT}, exclude_defaults=True)
    return f"training-{fingerprint((model, options, request.data.model_dump()))[:12]}"
