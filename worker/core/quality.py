"""Quality tiers: how far a faster way to generate may be from the plain one, and what was decided of each such way."""

from dataclasses import dataclass
from typing import Literal, get_args

Quality = Literal["exact", "high", "fast"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)  # from the strictest on
Verdict = Literal["on", "off", "trying"]


def allows(quality: Quality, tier: Quality) -> bool:
    """True if a job of this quality may use what belongs to `tier`."""
    return QUALITIES.index(tier) <= QUALITIES.index(quality)


@dataclass(frozen=True, slots=True)
class LeverReport:
    """What was decided of one lever for one model on this device, and why.

    `psnr_db` compares its images with the model's own plain ones, None for equal images; `gain` is how many times as
    fast a call is with it. Both are None where no trial came to its end.
    """

    model: str
    lever: str
    tier: Quality
    verdict: Verdict
    reason: str
    psnr_db: float | None = None
    gain: float | None = None
