"""What operations ask of a device, or of a fleet of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from worker.catalog.call import Model
from worker.core.answer import PlanReport, Preloaded, Unloaded, WorkerStatus
from worker.core.result import Emit
from worker.service.accepting.judging import Judge


class DeviceAnswers(Protocol):
    """Plans, the status, and models put on a device and taken off it."""

    @property
    def obstacle(self) -> str | None:
        """A sentence about what takes no work now; None where it is taken."""
        ...

    async def plan(self, model: str | None) -> PlanReport:
        """Plan a run of `model`."""
        ...

    async def plan_of(self, model: Model) -> PlanReport:
        """Plan a run of a model that is known already, whoever may name it."""
        ...

    async def kind_of_device(self) -> str:
        """Return what plans depend on, in a few words: the device, its memory, and what the operator knows."""
        ...

    def status(self) -> WorkerStatus:
        """Report if work is taken, what runs and what is resident."""
        ...

    def is_resident(self, model: str) -> bool:
        """True if this model of the registry is on a device."""
        ...

    async def check(self, model: str) -> None:
        """Look for the files of `model`, and fetch none. Raises SourceError and its kin."""
        ...

    async def preload(self, model: str | None, emit: Emit) -> Preloaded:
        """Put `model` on a device."""
        ...

    async def unload(self, model: str | None) -> Unloaded:
        """Take `model` off the device."""
        ...


async def with_what_is_known(report: PlanReport, model: Model, judge: Judge, worked: Sequence[str] = ()) -> PlanReport:
    """Return a plan with what the operator and earlier jobs know of the model; what is refused does not fit."""
    facts = await judge.known(model)
    known = (*(f"{model.spec.id} {fact.text}." for fact in facts), *(f"{model.spec.id} {text}." for text in worked))
    refusal = next((f"{model.spec.id} {fact.text}." for fact in facts if fact.refuses), None)
    if refusal is None:
        return replace(report, known=known)
    return replace(report, known=known, fits=False, reason=refusal, plan=None)
