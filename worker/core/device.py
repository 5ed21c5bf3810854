"""What a job can run on, and how a model will be put there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from worker.core.model import DType

Offload = Literal["none", "model", "sequential"]


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

    root: Path
    pipeline: str
    dtype: DType
    device: str
    offload: Offload
    estimated_bytes: int  # weights and working memory at the job's size
    weight_bytes: int
    variant: str | None = None
    config: Path | None = None
    scheduler_options: Mapping[str, JsonValue] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
