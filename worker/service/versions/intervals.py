"""Measured values with the bounds of the true ones."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from worker.core.version import Interval

Z = 1.96  # of a normal distribution 95 % lie within


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest of the sorted `values` that so many per cent do not exceed; None of none."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


def share_interval(count: int, total: int) -> Interval | None:
    """Return a share with Wilson's interval, which holds for few and for none too; None of nothing."""
    if not total:
        return None
    share, square = count / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    reach = Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


def mean_interval(values: Sequence[float], least: float = -math.inf) -> Interval | None:
    """Return a mean with its interval, of values that are no smaller than `least`; None of fewer than two values."""
    if len(values) < 2:
        return None
    reach = Z * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), max(least, mean(values) - reach), mean(values) + reach)
