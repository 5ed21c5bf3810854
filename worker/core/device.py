"""The device that a job runs on, and the plan for loading a model there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from worker.core.precision import DType, Offload, Precision, Quantizer, Weights

# The place of weights as a worker sees it, the nearest first; `elsewhere` is a download from their source.
Nearness = Literal["resident", "disk", "volume", "elsewhere"]
# Ways to load a model, the fastest first, and the bytes of device memory that each needs.
MemoryWays = tuple[tuple[Offload, int], ...]
LoadFormat = Literal["diffusers", "modular", "safetensors", "gguf", "upscaler"]


# How a model's components are spread over several GPUs: by their sizes, or component -> number of a GPU, from 0 on.
DeviceMap = Literal["balanced"] | Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU of several, with the bytes of its own memory."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device. Its bytes are those of its own memory: VRAM, or RAM for the CPU.

    `cards` are all GPUs of this process, the device itself first, where they were asked for.
    """

    type: Literal["cpu", "cuda", "mps"]
    name: str
    total_bytes: int
    free_bytes: int
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The plan for loading a model on a device: plain data; making it touches nothing."""

    root: Path  # a diffusers folder, or one weight file
    pipeline: str
    dtype: DType
    device: str
    offload: Offload
    estimated_bytes: int  # weights and working memory at the job's size
    weight_bytes: int
    working_bytes_per_mp: int = 0  # memory of an image of one megapixel while it is generated
    reserve_bytes: int = 0  # to be free beyond that: overhead, and with offloading the part that is computing
    format: LoadFormat = "diffusers"
    precision: Precision = "fp32"  # of the weights in memory, never auto; `dtype` is what is computed in
    quantizer: Quantizer | None = None  # what holds them so; None where the two are one
    reduced: Path | None = None  # the folder of components that were made smaller before
    variant: str | None = None
    config: Path | None = None  # the folder that describes a single file's components
    base: Path | None = None  # a diffusers folder that gives the components that the file lacks
    parts: Mapping[str, Path] = field(default_factory=dict)  # components from elsewhere: they replace all others
    cards: Mapping[str, int] = field(default_factory=dict)  # component -> GPU, of a model that is spread over several
    ranks: int = 1  # processes, each with a GPU of its own, between which the denoiser's tokens are shared out
    card_bytes: tuple[int, ...] = ()  # of `estimated_bytes`, those of each GPU
    scheduler: str | None = None  # the diffusers class that stands in for the config's own
    scheduler_options: Mapping[str, JsonValue] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def keeps_denoiser(self) -> bool:
        """True if all but the text encoders stays on the device."""
        return self.offload in ("none", "group")

    @property
    def weights(self) -> Weights:
        """The form in which the weights are in memory."""
        return Weights(self.precision, self.quantizer, self.offload)
