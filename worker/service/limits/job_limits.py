"""Bounds of one job, whoever sends it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may ask for at most."""

    max_images: int = 8
    max_loras: int = 8
    timeout_s: float = 600.0
