"""A comparison by golden prompts: what today's version of a model makes of them, and what another one does."""

from dataclasses import dataclass

from pydantic import Field

from worker.core.model import Parsed
from worker.core.version import Interval


class GoldenRequest(Parsed):
    """A model, and the version that is compared with the one it is served as; without one the newest at its source."""

    model: str = Field(min_length=1, max_length=512)
    version: str | None = Field(default=None, min_length=1, max_length=32)


@dataclass(frozen=True, slots=True)
class GoldenImage:
    """One prompt by both versions: the distance of the images, the seconds of both, and both side by side as WebP.

    Today's version is on the left.
    """

    prompt: str
    seed: int
    distance: float
    old_s: float
    new_s: float
    both: bytes


@dataclass(frozen=True, slots=True)
class GoldenComparison:
    """All golden prompts of a model by both versions. `slower_s` is how much longer the new one's inference took."""

    model: str
    old: str
    new: str
    images: tuple[GoldenImage, ...]
    distance: Interval | None
    slower_s: Interval | None
