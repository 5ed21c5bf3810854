"""The result of a job, and its progress on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import JsonValue

from worker.core.adapter import AdapterReport
from worker.core.errors import WorkerError
from worker.core.finishing import SafetyVerdict
from worker.core.image import MaskReading, Raster
from worker.core.model import Task
from worker.core.precision import Weights
from worker.core.profile import Profile
from worker.core.quality import Quality
from worker.core.request import CONTENT_TYPES, Format

Phase = Literal["download", "load", "inference", "encode", "train"]


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """One file of an answer: its bytes, or its place, a URL of a bucket or a path below the volume."""

    format: Format
    data: bytes = field(default=b"", repr=False)
    url: str | None = None
    path: str | None = None

    @property
    def media_type(self) -> str:
        """The media type, as HTTP names it."""
        return CONTENT_TYPES[self.format]

    @property
    def is_elsewhere(self) -> bool:
        """True if it is at another place, and its bytes are not here."""
        return self.url is not None or self.path is not None


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress within a phase: `step` of `total` bytes of a download, components of a load, or denoising steps.

    `preview` is a small image of the unfinished output, for jobs that asked for it; one that came encoded stays so.
    """

    phase: Phase
    step: int
    total: int
    message: str = ""
    preview: Raster | AnswerFile | None = None
    jobs: int | None = None  # the progress is of a batch's first `jobs`; None means all of them

    def after(self, earlier: "Progress | None") -> "Progress":
        """Return this, with the preview of `earlier` when it has none: for those who miss some of the progress."""
        if self.preview is not None or earlier is None or earlier.preview is None or self.phase != earlier.phase:
            return self
        return replace(self, preview=earlier.preview)


Emit = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Drop progress for which nobody waits."""


@dataclass(frozen=True, slots=True)
class LoraReport:
    """The effect of a LoRA: the count of its modules that matched the model, and samples of those that did not."""

    model: str
    weight: float
    matched: int
    total: int
    sha256: str | None = None
    algorithm: str = "lora"  # "loha", "dora" …; several are joined by "+"
    unmatched: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()  # the words that call up its subject, by the file


@dataclass(frozen=True, slots=True)
class Artifact:
    """One image or one video as pixels, with the seed that made it and the job it belongs to.

    A video has all of its `frames`, shown `fps` a second; its `raster` is the first of them.
    """

    job_id: str
    raster: Raster
    seed: int
    frames: tuple[Raster, ...] = ()
    fps: float = 0.0

    @property
    def is_video(self) -> bool:
        """True of a video."""
        return bool(self.frames)

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.raster.width

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.raster.height

    @property
    def num_frames(self) -> int:
        """The frames of a video; 0 of an image."""
        return len(self.frames)

    @property
    def byte_size(self) -> int:
        """Bytes of all pixels."""
        return sum(len(frame.data) for frame in self.frames or (self.raster,))


@dataclass(frozen=True, slots=True)
class EncodedArtifact:
    """One image or one video that came encoded: it leaves as it came. A video has `num_frames`, at `fps` a second.

    It is one file, or a file for each frame of a video.
    """

    files: tuple[AnswerFile, ...]
    seed: int
    width: int
    height: int
    num_frames: int = 0
    fps: float = 0.0

    @property
    def is_video(self) -> bool:
        """True of a video."""
        return self.num_frames > 0

    @property
    def byte_size(self) -> int:
        """Bytes of its files, those elsewhere left out."""
        return sum(len(file.data) for file in self.files)


# The outcome of one job of a batch: its images, or the error of this job alone.
Outcome = tuple[Artifact, ...] | WorkerError


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The engine's work for the first jobs of one batch, with the seconds and memory spent on them together.

    `outcomes` are in job order. There may be fewer than jobs: the other jobs did not fit into the same call.
    """

    outcomes: tuple[Outcome, ...]
    loras: tuple[LoraReport, ...] = ()
    own_loras: Mapping[str, tuple[LoraReport, ...]] = field(default_factory=dict)  # job id -> where jobs differ in them
    adapters: tuple[AdapterReport, ...] = ()
    load_s: float = 0.0
    inference_s: float = 0.0
    peak_memory_gb: float = 0.0
    warnings: tuple[str, ...] = ()  # for all of its jobs
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # job id -> warnings for its caller only
    # Job id -> a verdict on each of its artifacts, where a checker is set.
    safety: Mapping[str, tuple[SafetyVerdict, ...]] = field(default_factory=dict)
    levers: tuple[str, ...] = ()  # the ways to generate faster that were used
    weights: Weights | None = None  # the form in which the model's weights were in memory
    standing: str = ""  # a key of what its seconds belong to: the model's files, the device and the libraries
    profile: Profile | None = None  # of the one job that asked for it

    def loras_of(self, job_id: str) -> tuple[LoraReport, ...]:
        """Return the LoRAs of one job."""
        return self.own_loras.get(job_id, self.loras)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of a job's life, on time.monotonic's clock. `provide` is getting files ready without a download."""

    name: Literal["queue", "provide", "download", "load", "inference"]
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall seconds of one job by phase, and how many jobs shared its pipeline call."""

    queue_s: float = 0.0
    download_s: float = 0.0
    load_s: float = 0.0
    inference_s: float = 0.0
    batch_size: int = 1
    stages: tuple[Stage, ...] = ()  # the same seconds, with their times

    @classmethod
    def of(cls, stages: tuple[Stage, ...], batch_size: int) -> "Timings":
        """Return the sums of these stages."""

        def seconds(name: str) -> float:
            return sum(stage.ended - stage.began for stage in stages if stage.name == name)

        return cls(
            queue_s=seconds("queue"),
            download_s=seconds("download"),
            load_s=seconds("load"),
            inference_s=seconds("inference"),
            batch_size=batch_size,
            stages=stages,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that one job used. `pixel_steps` is width x height x frames x steps x images.

    `cost_usd` is the price of its `gpu_seconds`, where the operator set the price of an hour of this device.
    """

    gpu_seconds: float
    images: int
    pixel_steps: int
    peak_memory_gb: float
    bytes_downloaded: int
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All that is needed to generate the same images again; `input` can be sent as it is."""

    model: str
    loras: tuple[str, ...]
    versions: Mapping[str, str]
    input: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a gateway had a job generated, and why there. `expected_s` and `expected_usd` are as it was chosen."""

    replica: str
    tier: str | None
    reason: str
    expected_s: float
    expected_usd: float
    attempts: int = 1  # how many replicas it was sent to before one answered


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """The facts of a finished job, beside its images or videos."""

    model: str
    revision: str | None
    task: Task
    prompt: str
    parameters: Mapping[str, JsonValue]
    loras: tuple[LoraReport, ...]
    timings: Timings
    usage: Usage
    reproduce: Reproduction
    adapters: tuple[AdapterReport, ...] = ()
    safety: tuple[SafetyVerdict, ...] = ()
    mask: MaskReading | None = None  # the part of the sent mask that was redrawn
    warnings: tuple[str, ...] = ()
    placement: Placement | None = None  # of a gateway
    quality: Quality = "exact"
    levers: tuple[str, ...] = ()  # the ways to generate faster that were used
    weights: Weights | None = None  # the form in which the model's weights were in memory, where it is known
    steps: "tuple[StepReport, ...]" = ()  # of a recipe
    version: str | None = None  # of a model that has versions: "v3"
    arm: str | None = None  # of a split: the version or alias whose share the job is of
    profile: Profile | None = None  # where the seconds of its pipeline's calls went, if that was asked for


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a recipe: its facts, the seeds of its images, and how long all of it took, in seconds."""

    name: str
    facts: JobFacts
    seeds: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult(JobFacts):
    """A finished job as its backend returns it: pixels, or files that are encoded already; never both."""

    artifacts: tuple[Artifact, ...] | tuple[EncodedArtifact, ...]
