"""Typed answers to all requests to a worker; only `wire` and the doors make them into JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from worker.core.device import LoadPlan, Nearness
from worker.core.discovery import Discovery, Updates
from worker.core.golden import GoldenComparison
from worker.core.model import Detection, Outline, Task
from worker.core.precision import Offload, Precision
from worker.core.quality import LeverReport
from worker.core.request import FRAME_FORMATS, Format
from worker.core.result import AnswerFile, JobFacts
from worker.core.training import Trained, TrainingPlan, TrainingState
from worker.core.version import ComparisonReport, PairToJudge, VersionHistory, VersionList


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(JobFacts):
    """A finished job with its encoded files, ready for any door.

    The files are images, videos, or the frames of videos, one after the other; all are of one `format`. There is a
    seed for each image or video. `width`, `height`, `num_frames` and `fps` are of the first; 0 frames make an image.
    `encode_s` is the time for encoding them, in seconds. `streamed` is True if the files leave in parts only.
    """

    files: tuple[AnswerFile, ...]
    format: Format
    seeds: tuple[int, ...]
    width: int
    height: int
    num_frames: int = 0
    fps: float = 0.0
    encode_s: float = 0.0
    streamed: bool = False

    @property
    def is_video(self) -> bool:
        """True when the files are videos; the frames of one are images."""
        return self.num_frames > 0 and self.format not in FRAME_FORMATS


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One model of the registry, as far as it is known without its files.

    `served` is True if this version can run it. `source` is a reference on the Hub, else only the kind of source.
    """

    id: str
    aliases: tuple[str, ...]
    description: str | None
    architecture: str | None
    tasks: tuple[Task, ...]
    served: bool
    source: str
    tier: str | None
    min_vram_gb: float | None

    def is_named(self, name: str) -> bool:
        """True if `name` is the model's id or one of its aliases."""
        return name == self.id or name in self.aliases


@dataclass(frozen=True, slots=True)
class ModelList:
    """Every model of the registry."""

    models: tuple[ModelSummary, ...]


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """The JSON Schema (2020-12) of a request for one model: a document, which is JSON by nature."""

    document: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The nature of a source, read before any weight is fetched."""

    model: str
    source: str
    detection: Detection
    outline: Outline


@dataclass(frozen=True, slots=True)
class TierOutlook:
    """What one job would take on one tier of a fleet now. `fits` says if the tier is large enough, whoever is busy.

    `moved_bytes`, `seconds` to the image and `usd` are those of the tier's best replica; None where no replica of it
    takes a job now, and `reason` says why. `chosen`: a job that came now would go to this tier.
    """

    tier: str
    vram_bytes: int | None
    fits: bool
    reason: str
    chosen: bool = False
    offload: Offload | None = None
    nearness: Nearness | None = None
    moved_bytes: int | None = None
    seconds: float | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """What a model's last `jobs` took here: seconds, and dollars where a price is set, for each megapixel and step."""

    jobs: int
    seconds: float
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of a recipe: the plan of its model, its work, and the seconds and dollars that it will take if known."""

    name: str
    report: "PlanReport"
    pixel_steps: int
    expected_s: float | None = None
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The needs of one model on one device. `fits` is None where the size of its weights is not known.

    `reason` says why it does not fit, or why that is not known. `plan` is the way to load it where it fits. A gateway
    has no device of its own: it answers for the `tiers` of its fleet. `pace` is None before the model's first job here.
    `known` has a sentence for each row of compatibility.yaml about it, and for what worked or failed here.
    A recipe's is the sum of its `steps`; what it is expected to take is None before all of its models have run here.
    """

    model: str
    architecture: str | None
    pipeline: str | None
    tasks: tuple[Task, ...]
    revision: str | None
    weight_bytes: int
    native_size: int
    device: str
    free_bytes: int
    fits: bool | None = None
    reason: str | None = None
    plan: LoadPlan | None = None
    family: str | None = None
    precisions: Mapping[Precision, int] = field(default_factory=dict)  # bytes that the model needs in each, offloaded
    pace: Pace | None = None
    known: tuple[str, ...] = ()
    tiers: tuple[TierOutlook, ...] = ()
    steps: tuple[StepPlan, ...] = ()
    pixel_steps: int = 0
    expected_s: float | None = None
    expected_usd: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The state of a worker: its jobs, what it runs now and which models are resident."""

    status: str
    version: str
    running: str | None
    jobs_running: int
    jobs_queued: int
    resident_models: tuple[str, ...]
    models: int
    problems: tuple[str, ...] = ()  # a sentence for each model that should be ready and cannot be
    levers: tuple[LeverReport, ...] = ()  # what was decided of ways to generate faster, for the resident models
    alerts: tuple[str, ...] = ()  # the names of the operator's rules that hold now


@dataclass(frozen=True, slots=True)
class JobTimeline:
    """One job by its stages: the name of each, the seconds from the job's start to its own, and how long it took.

    `at` is the wall time of the job's start, in seconds since 1970.
    """

    id: str
    model: str
    outcome: str
    at: float
    seconds: float
    stages: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, slots=True)
class TimelineReport:
    """A process's start, as moments with their seconds from its beginning, and the last jobs, the last first."""

    start: tuple[tuple[str, float], ...]
    jobs: tuple[JobTimeline, ...]


@dataclass(frozen=True, slots=True)
class Preloaded:
    """A model that is on the device now, as `plan` says."""

    model: str
    plan: LoadPlan


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model that is not on the device any more; `dropped` is True if it was there before."""

    model: str
    dropped: bool


AnyAnswer = (
    Answer
    | ModelList
    | ModelSchema
    | Inspection
    | PlanReport
    | Discovery
    | Updates
    | GoldenComparison
    | WorkerStatus
    | TimelineReport
    | Preloaded
    | Unloaded
    | Trained
    | TrainingPlan
    | TrainingState
    | VersionList
    | VersionHistory
    | ComparisonReport
    | PairToJudge
)
