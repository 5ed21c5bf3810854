"""What comes back from a job, and what is told on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from worker.core.image import Raster
from worker.core.model import Task

Phase = Literal["download", "load", "inference", "encode"]


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `total` within a phase: bytes for downloads, components for loads, denoising steps for inference."""

    phase: Phase
    step: int
    total: int
    message: str = ""


Emit = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What a LoRA did: how many of its modules found their place in the model, and samples of those that did not."""

    model: str
    weight: float
    matched: int
    total: int
    sha256: str | None = None
    algorithm: str = "lora"  # "loha", "dora" …; several are joined by "+"
    unmatched: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()  # what the file says will call up its subject


@dataclass(frozen=True, slots=True)
class Artifact:
    """One picture or one video, with the seed that made it and the job it belongs to.

    A video has all of its `frames`, shown `fps` a second; its `raster` is the first of them.
    """

    job_id: str
    raster: Raster
    seed: int
    frames: tuple[Raster, ...] = ()
    fps: float = 0.0

    @property
    def is_video(self) -> bool:
        """Whether this is a video."""
        return bool(self.frames)

    @property
    def byte_size(self) -> int:
        """Bytes of all pixels."""
        return sum(len(frame.data) for frame in self.frames or (self.raster,))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What the engine did for one batch: pictures in job order, and seconds and bytes spent on them."""

    artifacts: tuple[Artifact, ...]
    loras: tuple[LoraReport, ...] = ()
    load_s: float = 0.0
    inference_s: float = 0.0
    peak_memory_gb: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall seconds of one job by phase, and how many jobs shared its pipeline call."""

    queue_s: float = 0.0
    download_s: float = 0.0
    load_s: float = 0.0
    inference_s: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What one job cost. `pixel_steps` is width x height x frames x steps x images."""

    gpu_seconds: float
    images: int
    pixel_steps: int
    peak_memory_gb: float
    bytes_downloaded: int


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All that is needed to draw the same pictures again; `input` can be sent as it is."""

    model: str
    loras: tuple[str, ...]
    versions: Mapping[str, str]
    input: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job: pictures or videos as pixels; the door encodes them."""

    artifacts: tuple[Artifact, ...]
    model: str
    revision: str | None
    task: Task
    prompt: str
    parameters: Mapping[str, JsonValue]
    loras: tuple[LoraReport, ...]
    timings: Timings
    usage: Usage
    reproduce: Reproduction
    warnings: tuple[str, ...] = field(default=())
