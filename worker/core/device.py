"""What a job can run on, and how a model will be put there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from worker.core.model import DType

Offload = Literal["none", "model", "sequential"]
LoadFormat = Literal["diffusers", "safetensors", "gguf", "upscaler"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device. Bytes are of its own memory: VRAM, or RAM for the CPU."""

    type: Literal["cpu", "cuda", "mps"]
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a model will be loaded on a device; a pure answer, nothing is touched."""

    root: Path  # a diffusers folder, or one weight file
    pipeline: str
    dtype: DType
    device: str
    offload: Offload
    estimated_bytes: int  # weights and working memory at the job's size
    weight_bytes: int
    working_bytes_per_mp: int = 0  # what an image of one megapixel takes while it is drawn
    reserve_bytes: int = 0  # what else has to be free then: overhead, and with offloading the part that is computing
    format: LoadFormat = "diffusers"
    variant: str | None = None
    config: Path | None = None  # the folder that says what a single file's components are
    base: Path | None = None  # a diffusers folder that gives the components that the file lacks
    parts: Mapping[str, Path] = field(default_factory=dict)  # components from elsewhere: they replace all others
    scheduler: str | None = None  # the diffusers class that stands in for the config's own
    scheduler_options: Mapping[str, JsonValue] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
