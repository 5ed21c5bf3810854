"""A model as it is called for a task: the plain facts that a job carries. The catalog derives all others of them."""

from typing import Protocol

from worker.core.model import Detection, ModelSpec, Task
from worker.core.pipeline import PipelineRow


class KnownModel(Protocol):
    """A model of which is known what its registry entry says and what its files say."""

    @property
    def spec(self) -> ModelSpec:
        """The registry entry, or a caller's reference."""
        ...

    @property
    def detection(self) -> Detection:
        """What the files are."""
        ...


class Call(KnownModel, Protocol):
    """One model called for one task as one pipeline class, with or without its Lightning LoRA."""

    @property
    def task(self) -> Task:
        """The task that is asked for."""
        ...

    @property
    def pipeline(self) -> str:
        """The name of the diffusers class that is called."""
        ...

    @property
    def row(self) -> PipelineRow:
        """The facts of that class."""
        ...

    @property
    def lightning(self) -> bool:
        """Whether the model's distillation LoRA is used."""
        ...
