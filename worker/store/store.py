"""The one way to a model's bytes, whatever their source."""

from collections.abc import Mapping
from typing import Protocol

from worker.core.job import StopSignal
from worker.core.model import ModelFiles, ModelSource, Outline
from worker.core.result import Emit


class Source(Protocol):
    """One scheme of ModelSource."""

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """What the source says of itself, without its weights."""
        ...

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """The source's files on disk."""
        ...


class Store:
    """Peek at a source, or have its files; one row per scheme of ModelSource."""

    def __init__(self, schemes: Mapping[str, Source]) -> None:
        self._schemes = dict(schemes)

    def peek(self, source: ModelSource, variant: str | None = None) -> Outline:
        """What the source says of itself, without its weights. Blocking."""
        return self._schemes[source.scheme].peek(source, variant)

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """The source's files on disk, fetched if need be. Blocking."""
        return self._schemes[source.scheme].ensure(source, variant, emit, stop)
