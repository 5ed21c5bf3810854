"""What a job needs of a replica, as far as models.yaml and the request tell."""

from worker.core.job import Job
from worker.remote.replica import Needs, Weights

GIB = 2**30


def needs_of(job: Job, seconds: float) -> Needs:
    """Return the needs of `job`, which takes `seconds` to generate by what is known of its model."""
    spec = job.call.spec
    adapters = tuple(Weights(str(adapter.spec.model)) for adapter in job.adapters)
    return Needs(
        model=spec.id,
        tier=spec.tier,
        vram_bytes=None if spec.min_vram_gb is None else round(spec.min_vram_gb * GIB),
        weights=(Weights(spec.id), *adapters),
        images=len(job.seeds),
        inference_s=seconds * len(job.seeds),
    )
