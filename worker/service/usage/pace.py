"""The pace of each model here: what its last images took, so that a plan can say what the next one will take."""

import threading
from collections import deque
from dataclasses import dataclass
from statistics import median

from worker.core.answer import Pace
from worker.service.usage.record import OK, Record
from worker.service.usage.telemetry import UNREGISTERED

KEPT = 20
"""Jobs of a model that count: the last ones, since a model may have become faster, or its device slower."""


@dataclass(frozen=True, slots=True)
class _Job:
    seconds: float
    usd: float | None


class Paces:
    """Learns from the records of finished jobs. A reference that stands in no models.yaml is not kept apart."""

    def __init__(self) -> None:
        self._jobs: dict[str, deque[_Job]] = {}
        self._lock = threading.Lock()

    def note(self, record: Record) -> None:
        """Note a job that generated something."""
        timings, usage = record.timings, record.usage
        if record.outcome != OK or record.model in ("", UNREGISTERED) or not timings or not usage:
            return
        megapixel_steps = usage.pixel_steps / 1e6
        if megapixel_steps > 0:
            usd = None if usage.cost_usd is None else usage.cost_usd / megapixel_steps
            job = _Job((timings.inference_s + record.encode_s) / megapixel_steps, usd)
            with self._lock:
                self._jobs.setdefault(record.model, deque(maxlen=KEPT)).append(job)

    def of(self, model: str) -> Pace | None:
        """Return the median of a model's last jobs; None before its first one."""
        with self._lock:
            jobs = [*self._jobs.get(model, ())]
        if not jobs:
            return None
        prices = [job.usd for job in jobs if job.usd is not None]
        return Pace(len(jobs), median(job.seconds for job in jobs), median(prices) if prices else None)

    def close(self) -> None:
        """Do nothing: a pace is of this process."""
