"""What worked here and what did not: one small file for each combination of models.yaml, on the volume.

Only registered models with registered adapters are noted: what a caller names by a reference is their own affair. A
combination is written down again when its day or its outcome changes, so that a busy worker writes little. A failing
disk is logged and loses notes.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from worker.store.entries import write_atomically

_LOG = logging.getLogger(__name__)
OK = "ok"
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Combination:
    """A model with adapters on a device: ids of models.yaml, and the device's name."""

    model: str
    adapters: tuple[str, ...]
    device: str

    def __str__(self) -> str:
        beside = f" with {', '.join(self.adapters)}" if self.adapters else ""
        return f"{beside} on {self.device}"


class Worked:
    """Notes outcomes in `folder`, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worked")
        self._noted: dict[tuple[Combination, bool], str] = {}

    def note(self, combination: Combination, outcome: str) -> None:
        """Note that a combination did its work, or with which code it failed. In the background."""
        day = datetime.now(UTC).date().isoformat()
        key, value = (combination, outcome == OK), f"{day} {outcome}"
        if self._noted.get(key) != value:
            self._noted[key] = value
            self._thread.submit(self._write, combination, outcome, day)

    def sentences(self, model: str) -> tuple[str, ...]:
        """Say what is noted of a model, the newest first; what was noted before counts. Blocking."""
        return self._thread.submit(self._read, model).result()

    def _read(self, model: str) -> tuple[str, ...]:
        notes: list[tuple[str, str]] = []
        for path in self._of(model).glob("*.json"):
            try:
                note = json.loads(path.read_bytes())
                what = Combination(note["model"], tuple(note["adapters"]), note["device"])
                outcome, day = str(note["outcome"]), str(note["day"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            said = f"worked here{what}" if outcome == OK else f"failed here{what} ({outcome})"
            notes.append((day, f"{said}, last on {day}"))
        return tuple(text for _, text in sorted(notes, reverse=True)[:_SHOWN])

    def close(self) -> None:
        """Return once everything is written."""
        self._thread.shutdown()

    def _of(self, model: str) -> Path:
        return self._folder / _digest([model])

    def _write(self, combination: Combination, outcome: str, day: str) -> None:
        kind = OK if outcome == OK else "failed"
        path = self._of(combination.model) / f"{_digest([*combination.adapters, combination.device])}-{kind}.json"
        note = {"model": combination.model, "adapters": [*combination.adapters], "device": combination.device}
        try:
            write_atomically(path, json.dumps(note | {"outcome": outcome, "day": day}))
        except OSError as error:
            _LOG.warning("what worked is not written down: %s", type(error).__name__)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24]
