"""One model on the device, or waiting beside it, and what of them may stay."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from worker.core.device import LoadPlan
from worker.engine.loader import view


@dataclass(frozen=True, slots=True)
class Budget:
    """What may stay: models on the device, LoRAs beside each, and bytes for merged weights and for models that wait.

    Bytes that are None are half of what a job leaves free on the device, and half of what is free in the host's memory.
    """

    models: int = 1
    loras: int = 4
    merged_bytes: int | None = None
    waiting_bytes: int | None = None


@dataclass(slots=True, weakref_slot=True)
class HostCopy:
    """The copy of a parameter or buffer in the host's memory, and its address on the device when it came from there."""

    tensor: Tensor
    copy: Tensor
    address: int = 0

    def is_of(self, tensor: Tensor) -> bool:
        """True while `tensor` is what this was copied to: one that was cast or laid out anew is not."""
        return self.tensor is tensor and self.address == tensor.data_ptr()


@dataclass(slots=True, weakref_slot=True)
class Resident:
    """A loaded pipeline, its own scheduler, which no job uses, and the other classes made of its components."""

    model: str
    plan: LoadPlan
    pipe: Any
    scheduler: Any
    users: int = 0
    is_upscaler: bool = False
    standing: object = None  # what the gate of levers knows of it
    copies: dict[int, HostCopy] = field(default_factory=dict)  # in the host's memory, by the tensor's id
    _views: dict[str, Any] = field(default_factory=dict)

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies in the host's memory."""
        return sum(copied.copy.nbytes for copied in self.copies.values())

    def as_class(self, class_name: str) -> Any:
        """Return this pipeline's components as `class_name`."""
        if class_name not in self._views:
            self._views[class_name] = view(self.pipe, class_name)
        return self._views[class_name]
