"""One lever: what it needs, how it is put on a pipeline, and how it is taken off again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from worker.core.model import DENOISERS
from worker.core.precision import Offload
from worker.core.quality import Quality

Undo = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a lever stands on: a pipeline as it is loaded, its device, and the kernels that the operator allows.

    `kernels` are folders of the image by their repository's name; nothing else is ever loaded as a kernel.
    """

    pipe: Any
    device: str = "cpu"
    offload: Offload = "none"
    kernels: Mapping[str, Path] = field(default_factory=dict)
    is_spread: bool = False

    @property
    def denoisers(self) -> tuple[nn.Module, ...]:
        """The pipeline's denoisers: one, or two."""
        names = (*DENOISERS, *(f"{name}_2" for name in DENOISERS))
        return tuple(part for name in names if isinstance(part := getattr(self.pipe, name, None), nn.Module))

    @property
    def is_whole(self) -> bool:
        """True if all weights stay on one GPU."""
        return self.device == "cuda" and self.offload == "none" and not self.is_spread

    @property
    def is_plain(self) -> bool:
        """True if the denoisers' weights are numbers of one dtype, neither packed nor quantized."""
        parameters = [parameter for part in self.denoisers for parameter in part.parameters()]
        return all(type(item) is nn.Parameter and item.is_floating_point() and item.itemsize > 1 for item in parameters)

    @property
    def capability(self) -> tuple[int, int]:
        """The GPU's compute capability; (0, 0) without a GPU."""
        return torch.cuda.get_device_capability() if self.device == "cuda" else (0, 0)


@dataclass(frozen=True, slots=True)
class Lever:
    """A way to generate faster.

    `on` puts it on a pipeline and returns what takes it off again: afterwards the pipeline's images are bit-equal to
    those before. A lever with the scope `call` is on for one call; one with the scope `pipeline` changes modules, goes
    on before adapters and stays until a job comes that may not use it.
    """

    name: str
    tier: Quality
    does: str
    applies: Callable[[Ground], bool]
    on: Callable[[Ground], Undo]
    scope: Literal["call", "pipeline"] = "call"
    bit_equal: bool = False  # True if its images are bit-equal to the plain ones
    beneath_adapters: bool = True  # False if a job with adapters goes without it
    alone: bool = False  # True if it decides by all images of a call together: then each job has its own call
    warms: bool = False  # True if it has to be made ready in this process, for each size, before a job may use it
    hot: int = 1  # after how many jobs of a model it is tried
    excludes: tuple[str, ...] = ()  # the levers before it that cannot be on beside it


def compatible(levers: Sequence[Lever]) -> tuple[Lever, ...]:
    """Return `levers` without those that a later one excludes."""
    excluded = {name for lever in levers for name in lever.excludes}
    return tuple(lever for lever in levers if lever.name not in excluded)
