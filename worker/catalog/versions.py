"""The versions of each model as their history has them: which there are, what each alias names, and who gets which.

Everything here follows from the changes in their order. So every worker that has read the same lines serves the same,
and what was served at any time can be worked out again.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from worker.core.model import ModelSpec
from worker.core.version import (
    ALIASES,
    STABLE,
    VERSION_NAME,
    AliasMoved,
    Change,
    HaltRule,
    SplitChanged,
    VersionAdded,
    VersionChoice,
    VersionContent,
)

_VERSION = re.compile(VERSION_NAME)
# What of an entry makes its images. The rest (names, limits, tier …) is always as models.yaml has it now.
CONTENT = (
    *("source", "tasks", "architecture", "pipeline", "config", "dtype", "variant", "prediction_type", "base", "vae"),
    *("components", "defaults", "loras", "lightning", "upscale", "quality", "precision", "refiner"),
)


def content_digest(spec: ModelSpec) -> str:
    """Return the digest of what makes an entry's images: equal for entries that differ in nothing but the rest."""
    text = json.dumps(spec.model_dump(mode="json", include=set(CONTENT), exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_selector(text: str) -> bool:
    """True if `text` can be the name of a version or of an alias: v3, stable, candidate."""
    return text in ALIASES or _VERSION.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model; `at` is when it was added."""

    name: str
    content: VersionContent
    at: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Split:
    """The shares of a model's versions and aliases, as numbers of any sum, and when one of them is halted.

    `paired` is the percentage of requests that another arm's version generates too.
    """

    arms: Mapping[str, float]
    halt: HaltRule
    paired: float = 0


@dataclass(frozen=True, slots=True)
class ModelVersions:
    """The versions of one model now. `past` are those that @stable named, without those that were gone back from."""

    model: str
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    past: tuple[str, ...] = ()
    split: Split | None = None
    of_file: Mapping[str, float] = field(default_factory=dict)
    """The last split that models.yaml said, whatever became of it."""
    paired_of_file: float = 0
    changes: int = 0

    def find(self, selector: str) -> Version | None:
        """Return the version that an alias or a version's name means."""
        name = self.aliases.get(selector, selector)
        return next((version for version in self.versions if version.name == name), None)

    def by_digest(self, digest: str) -> Version | None:
        """Return the version of this content."""
        return next((version for version in self.versions if version.content.digest == digest), None)

    @property
    def stable(self) -> Version | None:
        """The version that requests get which name none; None before the first."""
        return self.find(STABLE)

    @property
    def before(self) -> Version | None:
        """The version that a rollback goes back to."""
        return self.find(self.past[-2]) if len(self.past) > 1 else None

    @property
    def in_use(self) -> tuple[Version, ...]:
        """The versions whose files have to stay: those that an alias, a split or a rollback can ask for."""
        names = [*self.aliases, *(self.split.arms if self.split else ()), *([self.before.name] if self.before else [])]
        found = {version.name: version for version in map(self.find, names) if version is not None}
        return tuple(found.values())

    def choose(self, key: str) -> VersionChoice | None:
        """Return the version for whoever has this `key`: the same for the same key while the shares are the same.

        The last arm takes the keys at the end, so that a larger share takes callers over and sends none back. The share
        of an arm that names no version belongs to @stable. None before the first version.
        """
        stable = self.stable
        if stable is None:
            return None
        if self.split is None:
            return VersionChoice(self.model, stable.name, STABLE, None, self.changes)
        name = _arm_of(
            self.split.arms, hashlib.sha256(f"{self.model}\0{key}".encode("utf-8", "surrogatepass")).digest()
        )
        version = self.find(name)
        if version is None:
            name, version = STABLE, stable
        return VersionChoice(self.model, version.name, name, name, self.changes)

    def after(self, change: Change) -> "ModelVersions":
        """Return the versions after one more change of this model."""
        match change:
            case VersionAdded():
                if self.by_digest(change.content.digest) is not None:  # two workers added it at the same time
                    return self
                name = f"v{len(self.versions) + 1}"
                version = Version(name, change.content, change.at, change.who, change.why)
                return replace(self, versions=(*self.versions, version))
            case AliasMoved():
                moved = replace(self, aliases={**self.aliases, change.alias: change.moved_to})
                if change.alias != STABLE:
                    return moved
                return replace(moved, past=_past(self.past, change.moved_to), split=None)
            case SplitChanged():
                arms = {name: share for name, share in change.arms.items() if share > 0}
                split = Split(arms, change.halt, change.paired) if arms else None
                if not change.of_file:
                    return replace(self, split=split)
                return replace(self, split=split, of_file=change.arms, paired_of_file=change.paired)

    def serve(self, spec: ModelSpec, version: Version) -> ModelSpec:
        """Return the entry `spec` with the content of `version`."""
        content = {name: getattr(version.content.spec, name) for name in CONTENT}
        return spec.model_copy(update={**content, "version": version.name})


def _arm_of(arms: Mapping[str, float], digest: bytes) -> str:
    total = sum(arms.values())
    point, reached = int.from_bytes(digest[:8], "big") / 2**64 * total, 0.0
    for name, share in arms.items():
        reached += share
        if point < reached:
            return name
    return [*arms][-1]


def replay(changes: Iterable[Change]) -> dict[str, ModelVersions]:
    """Return the versions of each model after these changes."""
    models: dict[str, ModelVersions] = {}
    count = 0
    for change in changes:
        count += 1
        before = models.get(change.model) or ModelVersions(change.model)
        models[change.model] = before.after(change)
    return {name: replace(versions, changes=count) for name, versions in models.items()}


def _past(past: tuple[str, ...], now: str) -> tuple[str, ...]:
    """Return the way to the present version: who goes back to the one before can go back further next time."""
    if past and past[-1] == now:
        return past
    return past[:-1] if past[-2:-1] == (now,) else (*past, now)
