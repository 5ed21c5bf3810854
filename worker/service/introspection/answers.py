"""What operations ask of a device, or of a fleet of them."""

from typing import Protocol

from worker.core.answer import PlanReport, Preloaded, Unloaded, WorkerStatus
from worker.core.result import Emit


class DeviceAnswers(Protocol):
    """Plans, the status, and models put on a device and taken off it."""

    @property
    def obstacle(self) -> str | None:
        """A sentence about what takes no work now; None where it is taken."""
        ...

    async def plan(self, model: str | None) -> PlanReport:
        """Plan a run of `model`."""
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
