"""Bounds of one job, for every caller."""

from dataclasses import dataclass

from worker.core.model import ModelSpec
from worker.core.quality import Quality
from worker.core.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The most that one job may ask for."""

    max_images: int = 8
    max_loras: int = 8
    timeout_s: float = 600.0
    quality: Quality = "exact"  # of a job that names none, as does its model

    def quality_of(self, request: GenerationRequest, spec: ModelSpec) -> Quality:
        """Return the quality of a job: as asked, else its model's, else this worker's."""
        return request.quality or spec.quality or self.quality

    def seconds_for(self, request: GenerationRequest, spec: ModelSpec) -> float:
        """Return the seconds that one job may take: as asked, within the bounds of this worker and the model's tier."""
        bounds = (request.timeout_s, self.timeout_s, spec.timeout_s)
        return min(bound for bound in bounds if bound is not None)
