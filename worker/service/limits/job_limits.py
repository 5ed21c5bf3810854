"""Bounds of one job, for every caller."""

from dataclasses import dataclass

from worker.core.errors import InvalidRequest
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
    precisions: bool = True  # whether requests may name a precision

    def quality_of(self, request: GenerationRequest, spec: ModelSpec) -> Quality:
        """Return the quality of a job: as asked, else its model's, else this worker's."""
        return request.quality or spec.quality or self.quality

    def in_precision(self, request: GenerationRequest, spec: ModelSpec) -> ModelSpec:
        """Return the model in the precision that a request names. Raises InvalidRequest where it may name none."""
        if request.precision is None:
            return spec
        if not self.precisions:
            raise InvalidRequest(
                "precision is the operator's to choose on this worker (ALLOW_PRECISION=false); leave it out.",
                field="precision",
            )
        return spec.model_copy(update={"precision": request.precision})

    def seconds_for(self, request: GenerationRequest, spec: ModelSpec) -> float:
        """Return the seconds that one job may take: as asked, within the bounds of this worker and the model's tier."""
        bounds = (request.timeout_s, self.timeout_s, spec.timeout_s)
        return min(bound for bound in bounds if bound is not None)
