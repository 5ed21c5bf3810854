"""The fault table: its rows, and the figures that tests measure for them.

Each file of this folder tests one row and measures what the row promises. `make faults` prints every figure beside its
bar and writes them as JSON. A figure that is of the moment (seconds of a clock, what an allocator keeps) is held to its
bar there alone: `make test` runs on busy machines, and holds what was done, counted or allocated.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

ROWS = {
    "F1": "a download is killed at any byte",
    "F2": "several processes fetch one model; locks do nothing or their holder is dead",
    "F3": "the disk is full at the start or midway",
    "F4": "files are truncated, flipped, replaced or of another size, on the wire and on disk",
    "F5": "the Hub fails, refuses, cuts or hangs",
    "F6": "a server sends a byte a second",
    "F7": "memory runs out while loading, drawing or decoding",
    "F8": "malformed requests",
    "F9": "hostile model files and registries",
    "F10": "addresses that point inwards; images that are bombs",
    "F11": "many jobs at once",
    "F12": "one job is delivered twice",
    "F13": "a job is cancelled in any phase",
    "F14": "SIGTERM, then SIGKILL",
    "F15": "the platform refuses a result",
    "F16": "jobs that follow each other leave no trace",
    "F17": "the same image from the same seed",
    "F18": "thousands of mixed jobs",
    "F19": "LoRAs and models change all the time",
    "F20": "secrets and private texts",
    "F21": "broken registries",
    "F22": "jobs over their deadline",
    "F23": "starvation: slow links, slow callers, slow webhooks",
    "F24": "deadlines before a job is accepted",
    "F25": "what a log line costs",
    "F26": "headers and documents with millions of entries",
    "F27": "configs that describe impossible models",
    "F28": "slow, endless and half requests",
    "F29": "small inputs that become large",
    "F30": "names that are rebound to other addresses",
}
REPORT = "FAULTS_REPORT"
"""The variable with the path that `make faults` writes the figures to; unset otherwise."""


@dataclass(frozen=True)
class Figure:
    """One measured value beside its bar."""

    row: str
    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    momentary: bool = False

    @property
    def inside(self) -> bool:
        """Whether the value keeps to its bar."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def bar(self) -> str:
        """The bar as a person reads it."""
        parts = [
            f"{sign} {limit:g} {self.unit}".strip()
            for sign, limit in (("≤", self.at_most), ("≥", self.at_least))
            if limit is not None
        ]
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.row} {self.what}: {self.value:.4g} {self.unit} (bar {self.bar})"


class Figures:
    """What one test measures: the fixture `figures`."""

    def __init__(self, properties: list[tuple[str, Any]]) -> None:
        self._properties = properties

    def __call__(
        self, row: str, what: str, value: float, unit: str = "", *,
        at_most: float | None = None, at_least: float | None = None, momentary: bool = False,
    ) -> None:  # fmt: skip
        """Keep a figure, and fail outside its bar. With `momentary` it is of the moment: see the module."""
        assert row in ROWS, row
        assert (at_most, at_least) != (None, None), "a figure without a bar promises nothing"
        figure = Figure(row, what, float(value), unit, at_most, at_least, momentary)
        self._properties.append((REPORT, asdict(figure)))
        assert figure.inside or (momentary and REPORT not in os.environ), str(figure)
