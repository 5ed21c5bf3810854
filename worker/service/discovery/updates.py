"""Newer versions of the registered models: what differs in size, tensors, configs and licence, and whether they run.

Only headers and JSON are read, of both versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from worker.core.discovery import Listed, Update, Withheld
from worker.core.errors import WorkerError
from worker.core.model import ModelSource, ModelSpec, Outline
from worker.service.discovery.aims import Aim
from worker.service.discovery.looking import Looker
from worker.service.limits.pools import Pool
from worker.store.hub_search import licence_in

_NAMED = 6  # tensors and files of which the names are told
_ANYTHING = Aim((), "", frozenset())


class Versions(Protocol):
    """The versions of a source, as the store knows them. All of it blocks."""

    def in_use(self, source: ModelSource, variant: str | None) -> ModelSource:
        """Return `source` at the version that jobs get."""
        ...

    def newest(self, source: ModelSource) -> ModelSource | None:
        """Return `source` at its newest version; None of a source without versions."""
        ...

    def peek_at(self, source: ModelSource, variant: str | None) -> Outline:
        """Return the outline of exactly this version."""
        ...


@dataclass(frozen=True, slots=True)
class UpdateSeeker:
    """Compares the version of a model that is in use with the newest one at its source."""

    versions: Versions
    looker: Looker
    headers: Pool

    async def seek(self, spec: ModelSpec) -> Update | str | tuple[str, str]:
        """Return what is newer of a model; its id where nothing is; its id and a sentence where that is not known."""
        try:
            return await self._seek(spec) or spec.id
        except WorkerError as error:
            return spec.id, error.message

    async def _seek(self, spec: ModelSpec) -> Update | None:
        place = "" if spec.source.is_local else spec.source.host
        run = self.headers.run
        versions = self.looker.resolver.versions
        served = await run(versions.served, spec)
        new = await run(self.versions.newest, spec.source, place=place)
        old = await run(self.versions.in_use, served.source, spec.variant, place=place)
        if new is None or old.revision is None or new.revision == old.revision:
            return None
        before = await run(self.versions.peek_at, old, spec.variant, place=place)
        after = await run(self.versions.peek_at, new, spec.variant, place=place)
        seen = await self.looker.look(Listed(new.reference, spec.id, ""), _ANYTHING)
        update = _compared(spec.id, before, after)
        obstacle = seen.reason if isinstance(seen, Withheld) else None
        revised = [each for each in versions.last_read(spec.id).versions if _is_at(each.content.spec.source, new)]
        name = revised[-1].name if revised else None
        return replace(update, old=old.reference, new=new.reference, obstacle=obstacle, version=name)


def updated(entry: ModelSpec, new: ModelSource) -> ModelSpec:
    """Return an entry of models.yaml at a newer version of its source."""
    place = {name: getattr(new, name) for name in ("locator", "revision", "filename")}
    return entry.model_copy(update={"source": entry.source.model_copy(update=place | {"sha256": None})})


def _is_at(source: ModelSource, version: ModelSource) -> bool:
    return (source.scheme, source.locator, source.revision) == (version.scheme, version.locator, version.revision)


def _compared(model: str, before: Outline, after: Outline) -> Update:
    tensors = [dict(outline.header.tensors) if outline.header else {} for outline in (before, after)]
    added = sorted(tensors[1].keys() - tensors[0].keys())
    removed = sorted(tensors[0].keys() - tensors[1].keys())
    reshaped = sorted(name for name, value in tensors[1].items() if tensors[0].get(name, value)[1] != value[1])
    licences = [licence_in(outline.declared.tags) if outline.declared else None for outline in (before, after)]
    return Update(
        model=model,
        old="",
        new="",
        old_bytes=before.weight_bytes or 0,
        new_bytes=after.weight_bytes or 0,
        added=len(added),
        removed=len(removed),
        reshaped=len(reshaped),
        tensors=tuple([*added, *removed, *reshaped][:_NAMED]),
        configs=tuple(_differing(before.configs, after.configs)[:_NAMED]),
        old_licence=licences[0],
        new_licence=licences[1],
    )


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
