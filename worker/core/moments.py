"""The moments of this process's start, each at its first time: what took how long until the first job was answered."""

import os
import time
from pathlib import Path

_noted: dict[str, float] = {}


def note(name: str) -> None:
    """Note that `name` is over now; only the first time counts."""
    _noted.setdefault(name, time.monotonic())


def of_start() -> tuple[tuple[str, float], ...]:
    """Return the moments in order, each with the seconds from the start of the process to it."""
    began = _began()
    return tuple((name, max(at - began, 0.0)) for name, at in sorted(_noted.items(), key=lambda moment: moment[1]))


def _began() -> float:
    """Return when this process began, on time.monotonic's clock; where the system does not tell, its first moment."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age_s
    except (OSError, ValueError, IndexError, AttributeError):
        return min(_noted.values(), default=time.monotonic())
