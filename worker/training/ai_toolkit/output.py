"""What ai-toolkit prints while it trains: its bar, and what ended it. As its version 0.12.26 does (docs/decisions.md).

Its bar is tqdm's, with the job's name before it and `lr: 1.0e-04 loss: 3.456e-01` at its end. It is drawn after every
step with the number of the step before, and again with its own number unless that was a moment ago.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BAR = re.compile(r":\s+\d+%\|.*\|\s*(\d+)/(\d+) \[.*?lr: (\S+?)[\s\]].*?\bloss: ([^\s\]]+)")
_SAVED = "Saved checkpoint to "
_KEPT_LINES = 40
_MEMORY = re.compile(r"out of memory|OOM during training step", re.I)
_FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded", re.I)
_MISSING = re.compile(r"No module named '([\w.]{1,80})'")


@dataclass(slots=True)
class Reading:
    """What its lines have told: the loss of each step from `first` on, and the learning rate of the last."""

    name: str
    steps: int
    first: int
    losses: list[float] = field(default_factory=list)
    rate: float = 0.0
    saves: int = 0
    last_lines: list[str] = field(default_factory=list)
    _pending: float | None = None

    @property
    def done(self) -> int:
        """The steps that are done, as far as is told."""
        return self.first + len(self.losses)

    def hear(self, line: str) -> bool:
        """Take a line in; True if it was the bar's."""
        match = _BAR.search(line) if line.lstrip().startswith(f"{self.name}:") else None
        if match is None or int(match[2]) != self.steps:
            self.saves += line.startswith(_SAVED)
            self.last_lines = [*self.last_lines, line][-_KEPT_LINES:]
            return False
        at = min(int(match[1]), self.steps)
        rate, loss = _number(match[3]), _number(match[4])
        if at > self.done:  # what was shown last before is the loss of the last of these steps
            known = loss if self._pending is None else self._pending
            self.losses += [known] * (at - self.done)
        self._pending, self.rate = loss, rate
        return True

    @property
    def latest(self) -> float | None:
        """The loss that is shown, also of a step whose end is not told yet."""
        return self._pending

    @property
    def is_out_of_memory(self) -> bool:
        """True if memory ran out."""
        return any(_MEMORY.search(line) for line in self.last_lines)

    @property
    def is_disk_full(self) -> bool:
        """True if there was no room for what it wrote."""
        return any(_FULL.search(line) for line in self.last_lines)

    @property
    def missing_package(self) -> str | None:
        """The Python package that it ended for."""
        return next((match[1] for line in _last(self.last_lines) if (match := _MISSING.search(line))), None)


def _last(lines: Sequence[str]) -> Sequence[str]:
    return lines[::-1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
