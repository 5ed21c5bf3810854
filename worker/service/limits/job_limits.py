"""Bounds of one job, for every caller."""

from dataclasses import dataclass

from worker.core.model import ModelSpec
from worker.core.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The most that one job may ask for."""

    max_images: int = 8
    max_loras: int = 8
    timeout_s: float = 600.0

    def seconds_for(self, request: GenerationRequest, spec: ModelSpec) -> float:
        """Return the seconds that one job may take: as asked, within the bounds of this worker and the model's tier."""
        bounds = (request.timeout_s, self.timeout_s, spec.timeout_s)
        return min(bound for bound in bounds if bound is not None)
