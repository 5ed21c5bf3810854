"""Versions of a model: what its entry of models.yaml stood for, and each change of what is served.

A change is one line of the history. What is served is never written down: it follows from the changes, in their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from worker.core.model import ModelSource, ModelSpec, Parsed

STABLE = "stable"
CANDIDATE = "candidate"
ALIASES = (STABLE, CANDIDATE)
VERSION_NAME = r"v[1-9][0-9]{0,5}"
MAX_WHY = 500


class PinnedFile(Parsed):
    """Bytes and SHA-256 of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PinnedSource(Parsed):
    """One source of a version, at the revision or digest that it stood for: its files by name."""

    source: ModelSource
    variant: str | None = None
    files: dict[str, PinnedFile]


class VersionContent(Parsed):
    """All that makes a version: the entry with its references pinned, and the files behind them.

    Versions with one `digest` are the same version. `entry` is the digest of the entry before it was pinned.
    """

    digest: str
    entry: str
    spec: ModelSpec
    sources: tuple[PinnedSource, ...]

    @property
    def digests(self) -> frozenset[str]:
        """The SHA-256 of every file."""
        return frozenset(file.sha256 for source in self.sources for file in source.files.values())


class HaltRule(Parsed):
    """When an arm of a split is halted: it fails more often, or takes longer, than the one that is compared with.

    `errors` is the share of failed jobs beyond the other's, of at least `jobs`. `slower` is how many times the other's
    median seconds of inference it may take; None does not look at them.
    """

    errors: float = Field(default=0.2, gt=0, le=1)
    slower: float | None = Field(default=2.0, gt=1, le=1_000)
    jobs: int = Field(default=5, ge=2, le=1_000)


class _Change(Parsed):
    model_config = ConfigDict(populate_by_name=True)

    at: str
    """UTC, as 2026-11-30T14:03:00.123+00:00."""
    who: str
    why: str = ""
    model: str


class VersionAdded(_Change):
    """A version was added; its name is v and its number among those of its model."""

    kind: Literal["version"]
    content: VersionContent


class AliasMoved(_Change):
    """An alias names another version from now on. When it is @stable, a split ends with it."""

    kind: Literal["alias"]
    alias: str
    moved_from: str | None = Field(default=None, alias="from")
    moved_to: str = Field(alias="to")


class SplitChanged(_Change):
    """Other shares for the versions and aliases of a model; none for no split. `halted` is the arm that failed.

    `paired` is the percentage of requests that another arm's version generates too. `of_file` is true where models.yaml
    says so.
    """

    kind: Literal["split"]
    arms: dict[str, float] = Field(default_factory=dict)
    paired: float = 0
    halt: HaltRule = Field(default_factory=HaltRule)
    halted: str | None = None
    of_file: bool = False


Change = VersionAdded | AliasMoved | SplitChanged
_CHANGE: TypeAdapter[Change] = TypeAdapter(
    Annotated[Change, Field(discriminator="kind")], config=ConfigDict(defer_build=True)
)


def parse_change(line: bytes) -> Change:
    """Read one line of the history. Raises ValueError."""
    return _CHANGE.validate_json(line)


def change_line(change: Change) -> bytes:
    """Write one line of the history. What is as by default is left out, so that older workers can read it."""
    return _CHANGE.dump_json(change, by_alias=True, exclude_defaults=True) + b"\n"


@dataclass(frozen=True, slots=True)
class VersionChoice:
    """The version that one job is served by, and why: `chosen_by` is the alias, arm or version that led to it.

    `arm` is None without a split. `changes` says how many lines of the history were read: it follows from those.
    """

    model: str
    version: str
    chosen_by: str
    arm: str | None
    changes: int

    @property
    def reference(self) -> str:
        """The name under which this version alone is served."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """One version as an operator reads it: its name, its aliases, and what it is made of. `bytes` are of all files."""

    name: str
    aliases: tuple[str, ...]
    at: str
    who: str
    why: str
    source: str
    revision: str | None
    loras: tuple[str, ...]
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class VersionsOfModel:
    """The versions of one model, and who gets which.

    `entry` is the version that the entry of models.yaml is; None if it is none yet. `before` is what a rollback goes
    back to. `arms` are the shares of a split, none without one. `changes` counts the lines of the history.
    """

    model: str
    versions: tuple[VersionFacts, ...]
    entry: str | None
    before: str | None
    arms: Mapping[str, float]
    paired: float
    halt: HaltRule | None
    changes: int


@dataclass(frozen=True, slots=True)
class VersionList:
    """The versions of the models that have any, or of the model that was asked for."""

    models: tuple[VersionsOfModel, ...]


@dataclass(frozen=True, slots=True)
class ServedThen:
    """What one model was served as at some time: its @stable version, and the shares of a split."""

    model: str
    stable: str | None
    arms: Mapping[str, str]
    """Arm -> the version that it named."""
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class VersionHistory:
    """The newest changes, the last first; and with a time, what was served then."""

    changes: tuple[Change, ...]
    at: str | None = None
    served: tuple[ServedThen, ...] = ()


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value, and the bounds that the true one lies within in 95 of 100 cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ComparedVersion:
    """The jobs of one version, or of an arm of a split, by the usage log.

    `refused` were none of its doing: refused by a rule, cancelled, or stopped with the worker. They do not count in
    `error_rate`. Seconds are of jobs that were answered with images.
    """

    version: str
    arm: str | None
    jobs: int
    failed: int
    refused: int
    error_rate: Interval | None
    seconds_p50: float | None
    seconds_p95: float | None
    inference_s: Interval | None
    gpu_seconds: float
    cost_usd: float | None
    cost_per_image: float | None
    images: int


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One pair: how far its images are apart, the seconds of both, and the version whose image was chosen."""

    at: str
    distance: float | None
    first_s: float | None
    second_s: float | None
    choice: str | None
    """A version, `equal`, or None while nobody chose."""


@dataclass(frozen=True, slots=True)
class ComparedPairs:
    """All pairs of two versions, `first` with the lower number, and the newest of them one by one.

    `failed` are those that the version beside the caller's failed in, of which `error_rate` is the share. `slower_s` is
    by how many seconds of inference `second` took longer. `usd` is what the images beside the callers' cost the
    operator. `prefer_second` is a share of the choices that were not `equal`, and `chance` the probability of choices
    at least as lopsided if nobody could tell the versions apart: the two-sided sign test.
    """

    first: str
    second: str
    pairs: int
    failed: int
    error_rate: Interval | None
    distance: Interval | None
    slower_s: Interval | None
    usd: float | None
    chose_first: int
    chose_second: int
    chose_equal: int
    prefer_second: Interval | None
    chance: float | None
    newest: tuple[JudgedPair, ...]


@dataclass(frozen=True, slots=True)
class PairToJudge:
    """Two images of one prompt and seed, whose versions are not told, and how many such pairs wait for a choice.

    Without a pair that waits, `id` is None and the images are empty.
    """

    model: str
    waiting: int
    id: str | None = None
    left: bytes = b""
    right: bytes = b""


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """The versions of a model by their jobs since the day `since`, and the shares of its split now."""

    model: str
    since: str
    versions: tuple[ComparedVersion, ...]
    arms: Mapping[str, float]
    pairs: tuple[ComparedPairs, ...] = ()
