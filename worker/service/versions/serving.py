"""Which version of a model a request gets. The history is looked at anew for each: no worker has a state of its own."""

import uuid
from collections.abc import Iterator, Mapping

from worker.catalog.versions import ModelVersions, Version, replay
from worker.core.errors import ModelNotFound
from worker.core.model import ModelSpec
from worker.core.version import Change, VersionChoice
from worker.store.history import HistoryFile


class Versions:
    """The versions that the history of a volume has. Blocking: each question opens the file."""

    def __init__(self, history: HistoryFile) -> None:
        self.history = history
        self._replayed: tuple[tuple[Change, ...], Mapping[str, ModelVersions]] = ((), {})

    def all(self) -> Mapping[str, ModelVersions]:
        """Return the versions of every model that has any. Raises SourceUnavailable."""
        return self._of(self.history.read())

    def of(self, model: str) -> ModelVersions:
        """Return the versions of one model, none if it has none. Raises SourceUnavailable."""
        return self.all().get(model) or ModelVersions(model)

    def digests_in_use(self) -> frozenset[str]:
        """Return the SHA-256 of every file of a version that is served, or that a rollback goes back to."""
        contents = [version.content for model in self.all().values() for version in model.in_use]
        return frozenset().union(*(content.digests for content in contents))

    def last_read(self, model: str) -> ModelVersions:
        """Return the versions of a model by what was read last, without a look at the volume."""
        return self._of(self.history.last_read).get(model) or ModelVersions(model)

    def last_known(self, spec: ModelSpec) -> ModelSpec:
        """Return what `spec` is served as by what was read last, without a look at the volume."""
        versions = self.last_read(spec.id)
        return spec if versions.stable is None else versions.serve(spec, versions.stable)

    def served(self, spec: ModelSpec) -> ModelSpec:
        """Return what an entry of models.yaml is served as: its @stable version, else as it stands there."""
        versions = self.of(spec.id)
        return spec if versions.stable is None else versions.serve(spec, versions.stable)

    def named(self, spec: ModelSpec, selector: str) -> ModelSpec | None:
        """Return the version of `spec` that `selector` names; None if that can be no version of it.

        A repository's own revision may be called v2 or stable: for a model without versions it is that. Raises
        ModelNotFound.
        """
        versions = self._asked(spec, selector)
        return None if versions is None else versions.serve(spec, version_of(versions, selector))

    def choose(self, spec: ModelSpec, selector: str | None, key: str | None) -> VersionChoice | None:
        """Return the version of a request for `spec`; None if it has none. Raises ModelNotFound.

        Without a `selector` it is that of @stable, or of a split by its `key`; without a key any arm, by the shares.
        """
        if selector is None:
            return self.of(spec.id).choose(uuid.uuid4().hex if key is None else key)
        versions = self._asked(spec, selector)
        if versions is None:
            return None
        return VersionChoice(spec.id, version_of(versions, selector).name, selector, None, versions.changes)

    def contents(self) -> Iterator[ModelSpec]:
        """Yield every version's entry, pinned, by what was read last."""
        for versions in self._of(self.history.last_read).values():
            yield from (version.content.spec for version in versions.versions)

    def _asked(self, spec: ModelSpec, selector: str) -> ModelVersions | None:
        versions = self.of(spec.id)
        return None if versions.stable is None and spec.source.is_repository else versions

    def _of(self, changes: tuple[Change, ...]) -> Mapping[str, ModelVersions]:
        read, replayed = self._replayed
        if read is not changes:
            replayed = replay(changes)
            self._replayed = (changes, replayed)
        return replayed


def version_of(versions: ModelVersions, selector: str) -> Version:
    """Return the version that `selector` names. Raises ModelNotFound, with those there are."""
    version = versions.find(selector)
    if version is None:
        raise ModelNotFound(f"model {versions.model}@{selector[:40]}: {_those_there_are(versions)}", field="model")
    return version


def _those_there_are(versions: ModelVersions) -> str:
    if not versions.versions:
        return f"{versions.model} has no versions yet; promote its entry to make the first."
    names = ", ".join([version.name for version in versions.versions][-10:])
    aliases = ", ".join(f"@{alias}" for alias in versions.aliases)
    return f"there is no such version; name one of {names}, or {aliases}."
