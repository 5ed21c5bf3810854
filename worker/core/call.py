"""A model's call for a task: the plain facts that a job carries. The catalog derives all others from them."""

from typing import Protocol

from worker.core.model import Detection, ModelSpec, Task
from worker.core.pipeline import PipelineRow


class KnownModel(Protocol):
    """A model with its registry entry and the detection of its files."""

    @property
    def spec(self) -> ModelSpec:
        """The registry entry, or a caller's reference."""
        ...

    @property
    def detection(self) -> Detection:
        """The detection of the files."""
        ...


class Call(KnownModel, Protocol):
    """One model called for one task as one pipeline class, with or without its Lightning LoRA."""

    @property
    def task(self) -> Task:
        """The requested task."""
        ...

    @property
    def pipeline(self) -> str:
        """The name of the diffusers class that is called."""
        ...

    @property
    def row(self) -> PipelineRow:
        """The facts about that class."""
        ...

    @property
    def lightning(self) -> bool:
        """True if the model's distillation LoRA is used."""
        ...
