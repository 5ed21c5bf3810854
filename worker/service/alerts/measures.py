"""What rules look at: operations counted over a window of time, and readings of now."""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worker.core.errors import AccessDenied, QuotaExceeded, RateLimited, Unauthenticated
from worker.service.alerts.schema import Measured, Rule
from worker.service.usage.record import Record

_SLOTS = 60  # of a window: what is counted leaves it a sixtieth at a time
_WAITS = 200  # that are kept of one slot
_CALLERS = 200  # that are counted of one slot
_FAILED = ("failed", "timed_out")
_QUOTAS = (RateLimited.code, QuotaExceeded.code)
_DENIALS = (AccessDenied.code, Unauthenticated.code)


@dataclass(frozen=True, slots=True)
class Readings:
    """The worker as it is now. `lost` is 1 for an engine that does not answer, and how many workers a gateway lacks."""

    queue_length: int = 0
    lost: int = 0
    disk_free_gb: float | None = None


@dataclass(slots=True)
class Counts:
    """What was counted in some stretch of time. `refused` and `denied` are of the one caller who had the most."""

    begins: float
    jobs: int = 0
    failed: int = 0
    cold: int = 0
    cost_usd: float = 0.0
    denied: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Add what another stretch of time has."""
        self.jobs += other.jobs
        self.failed += other.failed
        self.cold += other.cold
        self.cost_usd += other.cost_usd
        self.denied += other.denied
        self.refused += other.refused
        self.waits += other.waits

    def note(self, record: Record) -> None:
        """Count one operation."""
        if record.outcome in _QUOTAS and (record.caller in self.refused or len(self.refused) < _CALLERS):
            self.refused[record.caller or "-"] += 1
        self.denied += record.action == "access" and record.outcome in _DENIALS
        if record.action != "generate" or record.status not in ("ok", *_FAILED):
            return  # a caller's own mistake, or their change of mind, is no fault of the worker
        self.jobs += 1
        self.failed += record.status in _FAILED
        if record.timings is not None:
            self.cold += record.timings.load_s > 0
            if len(self.waits) < _WAITS:
                self.waits.append(record.timings.queue_s)
        if record.usage is not None and record.usage.cost_usd is not None:
            self.cost_usd += record.usage.cost_usd


class Window:
    """The counts of one rule's last `over_s` seconds. Used on one event loop; times are time.monotonic's."""

    def __init__(self, rule: Rule) -> None:
        self._model = rule.model
        self._over_s = rule.over_s
        self._slots: deque[Counts] = deque()

    def note(self, record: Record, now: float) -> None:
        """Count one operation, if it is of the rule's model."""
        if self._model is None or record.model == self._model:
            self._slot(now).note(record)

    def spend(self, model: str, usd: float, at: float) -> None:
        """Add what a job cost at an earlier time; earlier ones come first."""
        if self._model is None or model == self._model:
            self._slot(at).cost_usd += usd

    def counts(self, now: float) -> Counts:
        """Return the sum of the window that ends now."""
        self._drop(now)
        total = Counts(now - self._over_s)
        for slot in self._slots:
            total.add(slot)
        return total

    def _slot(self, at: float) -> Counts:
        self._drop(at)
        if not self._slots or at - self._slots[-1].begins >= self._over_s / _SLOTS:
            self._slots.append(Counts(at))
        return self._slots[-1]

    def _drop(self, now: float) -> None:
        while self._slots and self._slots[0].begins < now - self._over_s:
            self._slots.popleft()


def _error_rate(rule: Rule, counts: Counts, now: Readings) -> float | None:
    return counts.failed / counts.jobs if counts.jobs >= rule.min_jobs else None


def _waited(rule: Rule, counts: Counts, now: Readings) -> float | None:
    """The 95th percentile, by the nearest rank."""
    waits = sorted(counts.waits)
    return waits[math.ceil(0.95 * len(waits)) - 1] if waits else None


MEASURES: Mapping[Measured, Callable[[Rule, Counts, Readings], float | None]] = {
    "error_rate": _error_rate,
    "queue_s": _waited,
    "cold_starts": lambda rule, counts, now: counts.cold,
    "cost_usd": lambda rule, counts, now: counts.cost_usd,
    "refused": lambda rule, counts, now: max(counts.refused.values(), default=0),
    "denied": lambda rule, counts, now: counts.denied,
    "queue_length": lambda rule, counts, now: now.queue_length,
    "disk_free_gb": lambda rule, counts, now: now.disk_free_gb,
    "lost": lambda rule, counts, now: now.lost,
}
"""The value of each measure for a rule; None where nothing is known."""
