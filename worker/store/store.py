"""The one way to a model's bytes, whatever their source."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from worker.core.errors import UnsafeFormat
from worker.core.model import ModelFiles, ModelSource, Outline
from worker.core.result import Emit, ignore_progress
from worker.core.turn import StopSignal
from worker.store.lockfile import LockedModel, Lockfile, locked_from_disk


class Source(Protocol):
    """One scheme of ModelSource."""

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return the source's own description, without its weights."""
        ...

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the source's files on disk."""
        ...


@runtime_checkable
class Lockable(Protocol):
    """A source that knows the digests of its files before they are fetched."""

    def lock(self, source: ModelSource, variant: str | None, stop: StopSignal) -> LockedModel:
        """Return the revision and the files that `source` stands for now."""
        ...


@runtime_checkable
class Followed(Protocol):
    """A source whose models come in versions, one after the other."""

    def held(self, source: ModelSource, variant: str | None) -> ModelSource | None:
        """Return `source` at the version that was last fetched; None before that."""
        ...

    def newest(self, source: ModelSource) -> ModelSource:
        """Return `source` at its newest version."""
        ...


@runtime_checkable
class Licensed(Protocol):
    """A source whose pages tell terms that its files do not come with."""

    def licence(self, source: ModelSource) -> str | None:
        """Return the terms of the page of `source`; None where it tells none."""
        ...


class Store:
    """Peek at a source, or have its files; one row per scheme of ModelSource.

    `lock` fixes the meaning of references; `discard` removes the files fetched to a path.
    """

    def __init__(
        self,
        schemes: Mapping[str, Source],
        lock: Lockfile | None = None,
        discard: Callable[[Path], None] = lambda root: None,
    ) -> None:
        self._schemes = dict(schemes)
        self._lock = lock or Lockfile()
        self._discard = discard

    def peek(self, source: ModelSource, variant: str | None = None) -> Outline:
        """Return the source's own description, without its weights. Blocking."""
        return self._schemes[source.scheme].peek(self._lock.pin(source, variant), variant)

    def licence(self, source: ModelSource, variant: str | None = None) -> str | None:
        """Return the licence that the source's own description or its page tells; None where neither does. Blocking."""
        scheme = self._schemes[source.scheme]
        if isinstance(scheme, Licensed):
            return scheme.licence(self._lock.pin(source, variant))
        declared = self.peek(source, variant).declared
        return declared.licence if declared is not None else None

    def in_use(self, source: ModelSource, variant: str | None = None) -> ModelSource:
        """Return `source` at the version that jobs get: the locked or pinned one, else the last one fetched. Blocking.

        Unchanged where nothing of it was fetched yet.
        """
        pinned = self._lock.pin(source, variant)
        scheme = self._schemes[source.scheme]
        if pinned is not source or not isinstance(scheme, Followed):
            return pinned
        return scheme.held(source, variant) or source

    def newest(self, source: ModelSource) -> ModelSource | None:
        """Return `source` at its newest version, whatever is locked; None of a source without versions. Blocking."""
        scheme = self._schemes[source.scheme]
        return scheme.newest(source) if isinstance(scheme, Followed) else None

    def peek_at(self, source: ModelSource, variant: str | None = None) -> Outline:
        """Peek at exactly this version, whatever is locked. Blocking."""
        return self._schemes[source.scheme].peek(source, variant)

    def look(self, source: ModelSource, variant: str | None, stop: StopSignal) -> Outline:
        """Peek; a file that can be read only as a whole, an allowed pickle, is fetched for it. Blocking."""
        outline = self.peek(source, variant)
        if outline.header is not None or outline.configs:
            return outline
        files = self.ensure(source, variant, ignore_progress, stop)
        with self.harmless(files.root):
            return self.peek(source, variant)

    @contextmanager
    def harmless(self, root: Path) -> Iterator[None]:
        """Remove the files fetched to `root` when the block inside discovers that they could run code."""
        try:
            yield
        except UnsafeFormat:
            self._discard(root)
            raise

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the source's files on disk, fetched if need be, and true to the lockfile. Blocking."""
        files = self._schemes[source.scheme].ensure(self._lock.pin(source, variant), variant, emit, stop)
        self._lock.check(source, variant, files, stop.check)
        return files

    def lock(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> LockedModel:
        """Return what `source` stands for now, for a lockfile; files are fetched only if their digests are unknown."""
        scheme = self._schemes[source.scheme]
        if isinstance(scheme, Lockable):
            return scheme.lock(source, variant, stop)
        return locked_from_disk(scheme.ensure(source, variant, emit, stop), stop.check)
