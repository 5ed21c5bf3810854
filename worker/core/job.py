"""A request that was accepted: everything checked, no weights touched yet."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from worker.core.errors import JobCancelled, JobTimeout
from worker.core.image import Raster
from worker.core.lora import LoraKeys, Scaling
from worker.core.model import Detection, LoraSpec, ModelFiles, ModelSpec, Task
from worker.core.request import GenerationRequest, OutputOptions


class StopSignal:
    """Cancel and deadline of one job. Set from any thread, read by the engine at every step."""

    def __init__(self, timeout_s: float) -> None:
        self._cancelled = threading.Event()
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def cancel(self) -> None:
        """Ask the job to stop at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the caller took the job back."""
        return self._cancelled.is_set()

    @property
    def remaining_s(self) -> float:
        """Seconds left until the deadline; negative once it passed."""
        return self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise JobCancelled or JobTimeout when the job has to stop."""
        if self.cancelled:
            raise JobCancelled("The job was cancelled.")
        if self.remaining_s <= 0:
            raise self.timed_out()

    def timed_out(self) -> JobTimeout:
        """The error of a job whose deadline passed."""
        return JobTimeout(
            f"The job did not finish within its timeout_s of {self._timeout_s:g} seconds; "
            "raise timeout_s, or ask for fewer steps, fewer images or a smaller size.",
            field="timeout_s",
        )


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """A diffusers scheduler class, and what is laid over the model's own scheduler config."""

    name: str
    cls: str
    options: Mapping[str, JsonValue] = field(default_factory=dict)


# How a pipeline wants its pictures: one, a list, one or a list for its ControlNets, a list for each prompt, a mask that
# is white (or black) where it is redrawn, rows of in-context examples, or diffusers' object for a condition.
Form = Literal["picture", "pictures", "controls", "batch", "mask", "unmask", "grid", "condition"]
# What pipelines call the words that say what to draw, the first choice first.
PROMPT_PARAMETERS = ("prompt", "editing_prompt", "content_prompt")


@dataclass(frozen=True, slots=True)
class Media:
    """Pictures, or a video's frames, for one parameter of the pipeline's call."""

    parameter: str
    pictures: tuple[Raster, ...]
    form: Form
    field: str  # what the caller named it


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted generation. `params` are effective pipeline parameters by their diffusers names."""

    id: str
    request: GenerationRequest
    spec: ModelSpec
    detection: Detection
    task: Task
    pipeline: str
    prompt: str
    negative_prompt: str | None
    params: Mapping[str, JsonValue]
    scheduler: SchedulerChoice | None
    seeds: tuple[int, ...]
    media: tuple[Media, ...]
    loras: tuple[LoraSpec, ...]
    lightning: bool
    output: OutputOptions
    stop: StopSignal
    warnings: tuple[str, ...] = ()
    fps: float | None = None  # of the videos that come back; None for pictures
    accepted_at: float = field(default_factory=time.monotonic)

    @property
    def image(self) -> Raster | None:
        """The first picture sent to start from, if any."""
        sent = next((item for item in self.media if item.field in ("image", "images")), None)
        return sent.pictures[0] if sent else None

    @property
    def mask(self) -> Raster | None:
        """What is redrawn, white, of `image`; None when everything may be."""
        sent = next((item for item in self.media if item.field == "mask_image"), None)
        return sent.pictures[0] if sent else None


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A LoRA on disk, checked against the model's architecture, and what its header says."""

    spec: LoraSpec
    files: ModelFiles
    sha256: str
    keys: LoraKeys
    scaling: Scaling
    trigger_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What the engine runs in one pipeline call: jobs that agree in everything but prompt, picture and seeds."""

    jobs: tuple[Job, ...]
    files: ModelFiles
    adapters: tuple[AdapterFiles, ...] = ()
