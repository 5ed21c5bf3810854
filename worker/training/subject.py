"""What is trained, as a training knows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.training.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is trained: its id, family, the size and grid of its images, and how its pipeline is built."""

    model: str
    digest: str
    architecture: str | None
    native_size: int
    size_multiple: int
    pipeline: str  # the class that a whole model is saved as
    load: Callable[[], Any]
    ranks: Callable[[], Ranks] = lambda: ALONE  # those who take the steps, once it is loaded and the lessons are kept
