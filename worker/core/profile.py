"""A profile: where the seconds of one job's pipeline calls went, operator by operator."""

from dataclasses import dataclass, field

MAX_STEPS = 4
"""Steps of a job that are recorded, beside what comes before the first and behind the last."""
MAX_TRACE_BYTES = 4_000_000
"""The most that a trace has, compressed: an answer with it still fits where answers are bounded."""
MAX_OPERATORS = 20
TRACE_NAME = "trace.json.gz"
TRACE_TYPE = "application/gzip"


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator: how often it was called, and the milliseconds that it took itself, on the CPU and on the device."""

    name: str
    calls: int
    cpu_ms: float
    device_ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was recorded of a job: the costliest operators, and a trace as Chrome and Perfetto read it, gzipped.

    Of a trace that would have been too large the `left_out` shortest of all `events` are not in it. It is empty where
    it was still too large, or is at a URL of a bucket or a path below the volume.
    """

    steps: int
    events: int
    operators: tuple[OperatorCost, ...]
    left_out: int = 0
    trace: bytes = field(default=b"", repr=False)
    url: str | None = None
    path: str | None = None
