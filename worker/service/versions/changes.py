"""Changes of what is served: an entry becomes a version, an alias moves, a rollback, a split. Each is one step.

A change is refused before it is made if what it asks for could not be served. Once it is answered for, every request
that is accepted afterwards, by whatever worker of the volume, is served by it: each acceptance reads the history.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypedDict

from worker.catalog.versions import ModelVersions, Split, Version, is_selector, replay
from worker.core.errors import InvalidRequest, ParameterOutOfRange
from worker.core.model import ModelSpec
from worker.core.turn import StopSignal
from worker.core.version import (
    ALIASES,
    STABLE,
    AliasMoved,
    Change,
    SplitChanged,
    VersionAdded,
    VersionContent,
)
from worker.service.versions.serving import Versions, version_of

ENTRY = "entry"
MAX_ARMS = 8


class Pins(Protocol):
    """What knows the files behind an entry."""

    def pin(self, spec: ModelSpec, stop: StopSignal) -> VersionContent:
        """Return the content of an entry as it is now."""
        ...

    def check(self, content: VersionContent, name: str, stop: StopSignal) -> None:
        """Raise the reason why a version could not be served."""
        ...


@dataclass(frozen=True, slots=True)
class By:
    """Who makes a change, and why."""

    who: str
    why: str = ""


class Stamp(TypedDict):
    """What every change says."""

    at: str
    who: str
    why: str
    model: str


class VersionChanges:
    """Makes changes in the history. Blocking. `now` is the wall clock."""

    def __init__(self, versions: Versions, pins: Pins, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._versions = versions
        self._pins = pins
        self._now = now

    def record(self, entry: ModelSpec, spec: ModelSpec, alias: str, by: By, stop: StopSignal) -> str:
        """Make `spec`, another content for the model `entry`, a version with this alias; return its name.

        This is the way in for whatever makes a candidate: a training, an update. The entry itself becomes the first
        version, @stable, where the model has none yet.
        """
        _check_alias(alias)
        first = None if self._versions.of(entry.id).stable else self._pins.pin(entry, stop)
        content = self._pins.pin(spec.model_copy(update={"id": entry.id}), stop)
        added = [(content, alias)] if first is None else [(first, STABLE), (content, alias)]
        self._change(entry.id, by, lambda model, stamp: _recorded(model, added, stamp))
        version = self._versions.of(entry.id).by_digest(content.digest)
        return version.name if version is not None else ""

    def promote(self, entry: ModelSpec, selector: str, alias: str, by: By, stop: StopSignal) -> None:
        """Have `alias` name another version: one that an alias or its own name means, or `entry`, as models.yaml is.

        Raises ModelNotFound, InvalidRequest, and what it could not be served for.
        """
        _check_alias(alias)
        if selector == ENTRY:
            self.record(entry, entry, alias, by, stop)
            return
        version = version_of(self._versions.of(entry.id), selector)
        self._move(entry, version, alias, by, stop)

    def rollback(self, entry: ModelSpec, selector: str | None, by: By, stop: StopSignal) -> None:
        """Have @stable name the version that it named before, or another earlier one. Raises as `promote` does."""
        versions = self._versions.of(entry.id)
        if selector is not None:
            version = version_of(versions, selector)
        elif versions.before is not None:
            version = versions.before
        else:
            raise InvalidRequest(
                f"{entry.id} has no version to go back to; @stable never named another one.", field="model"
            )
        self._move(entry, version, STABLE, by, stop)

    def split(self, entry: ModelSpec, split: Split, by: By, stop: StopSignal) -> None:
        """Share requests out between versions and aliases, from now on; without arms end that.

        Raises ModelNotFound, InvalidRequest, and what an arm could not be served for.
        """
        check_arms(split.arms)
        if split.paired and len(split.arms) < 2:
            raise InvalidRequest("paired needs a split of two arms or more; send arms with it.", field="paired")
        versions = self._versions.of(entry.id)
        for name in split.arms:
            self._pins.check(version_of(versions, name).content, f"{entry.id}@{name}", stop)

        def decide(model: ModelVersions, stamp: Stamp) -> Sequence[Change]:
            arms = dict(split.arms)
            return [SplitChanged(kind="split", arms=arms, halt=split.halt, paired=split.paired, **stamp)]

        self._change(entry.id, by, decide)

    def halt(self, model: str, arm: str, arms: Mapping[str, float], by: By) -> bool:
        """End a split because of one of its arms; False if it is another one by now."""
        ended = False

        def decide(now: ModelVersions, stamp: Stamp) -> Sequence[Change]:
            nonlocal ended
            ended = now.split is not None and now.split.arms == arms
            return [SplitChanged(kind="split", halted=arm, **stamp)] if ended else []

        self._change(model, by, decide)
        return ended

    def follow(self, entries: Mapping[str, ModelSpec]) -> None:
        """Take over the splits of models.yaml that it did not have before, and end those that it had and lacks now."""
        for model in {*entries, *(name for name, each in self._versions.all().items() if each.of_file)}:
            entry = entries.get(model)
            said = (dict(entry.split), entry.paired) if entry is not None else ({}, 0.0)
            if _of_file(self._versions.of(model)) == said:
                continue

            def decide(
                now: ModelVersions, stamp: Stamp, said: tuple[dict[str, float], float] = said
            ) -> Sequence[Change]:
                if _of_file(now) == said:  # another worker that starts has done so
                    return []
                return [SplitChanged(kind="split", arms=said[0], paired=said[1], of_file=True, **stamp)]

            self._change(model, By("models.yaml"), decide)

    def _move(self, entry: ModelSpec, version: Version, alias: str, by: By, stop: StopSignal) -> None:
        self._pins.check(version.content, f"{entry.id}@{version.name}", stop)
        self._change(entry.id, by, lambda model, stamp: _moved(model, alias, version.name, stamp))

    def _change(self, model: str, by: By, decide: Callable[[ModelVersions, Stamp], Sequence[Change]]) -> None:
        stamp: Stamp = {
            "at": self._now().isoformat(timespec="milliseconds"),
            "who": by.who,
            "why": by.why,
            "model": model,
        }
        self._versions.history.change(lambda changes: decide(replay(changes).get(model) or ModelVersions(model), stamp))


def _of_file(model: ModelVersions) -> tuple[dict[str, float], float]:
    return dict(model.of_file), model.paired_of_file


def _recorded(model: ModelVersions, added: Sequence[tuple[VersionContent, str]], stamp: Stamp) -> Sequence[Change]:
    """Return the changes by which contents become versions, where they are none yet, with their aliases."""
    changes: list[Change] = []
    for content, alias in added:
        version = model.by_digest(content.digest)
        if version is None:
            changes.append(VersionAdded(kind="version", content=content, **stamp))
            model = model.after(changes[-1])
            version = model.versions[-1]
        moves = _moved(model, alias, version.name, stamp)
        changes += moves
        for move in moves:
            model = model.after(move)
    return changes


def _moved(model: ModelVersions, alias: str, name: str, stamp: Stamp) -> Sequence[Change]:
    """Return the move of an alias, none if it is there already and ends no split by it."""
    now = model.aliases.get(alias)
    if now == name and (alias != STABLE or model.split is None):
        return []
    return [AliasMoved(kind="alias", alias=alias, moved_from=now, moved_to=name, **stamp)]


def _check_alias(alias: str) -> None:
    if alias not in ALIASES:
        raise InvalidRequest(f"alias must be {' or '.join(ALIASES)}; {alias[:40]!r} was sent.", field="alias")


def check_arms(arms: Mapping[str, float]) -> None:
    """Check the shares of a split. Raises InvalidRequest."""
    if len(arms) > MAX_ARMS:
        raise ParameterOutOfRange(f"arms may be at most {MAX_ARMS}; {len(arms)} were sent.", field="arms")
    for name, share in arms.items():
        if not is_selector(name):
            raise InvalidRequest(
                f"arms holds {name[:40]!r}; name versions (v1, v2 …), stable or candidate.", field="arms"
            )
        if not 0 < share <= 1_000_000:
            raise ParameterOutOfRange(f"arms.{name} must be above 0; {share:g} was sent.", field="arms")
