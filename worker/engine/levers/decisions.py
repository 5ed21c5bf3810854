"""What was decided of each lever, on the volume: for a model's files, a device and the libraries. No words, no images.

A file holds all decisions for one such set. It is written whole and published by a rename, so that workers share the
folder without a lock; where two write at once one decision may be lost, and is then made again.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.core.quality import Verdict

_LOG = logging.getLogger(__name__)
VERSION = 1
# A trial takes minutes: one that began so long ago has ended, and its worker with it.
TRIAL_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. `at` is its time in seconds since 1970; `psnr_db` and `gain` are as in a LeverReport."""

    verdict: Verdict
    reason: str
    psnr_db: float | None = None
    gain: float | None = None
    at: float = 0.0
    failed: bool = False  # True if the pipeline may have been left in the middle of something


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    verdict: Verdict
    reason: str
    psnr_db: float | None = None
    gain: float | None = None
    at: float = 0.0


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    levers: dict[str, _Entry]


class Decisions:
    """The decisions in `folder`; without one they end with the process. Used from the engine's thread only."""

    def __init__(self, folder: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._known: dict[str, dict[str, Decision]] = {}

    def of(self, key: str) -> Mapping[str, Decision]:
        """Return the decisions for `key` by the names of levers: as they were read first, and what was noted since."""
        if key not in self._known:
            self._known[key] = self._read(key)
        return self._known[key]

    def look_again(self, key: str) -> Mapping[str, Decision]:
        """Return the decisions for `key` with those of other workers."""
        self._known[key] = self._known.get(key, {}) | self._read(key)
        return self._known[key]

    def note(self, key: str, lever: str, decision: Decision | None, facts: Mapping[str, str]) -> None:
        """Write down a decision; None takes one back. `facts` say for people what `key` stands for."""
        known = dict(self.look_again(key))
        known.pop(lever, None)
        if decision is not None:
            known[lever] = replace(decision, at=self._now())
        self._known[key] = known
        if self._folder is None:
            return
        levers = {name: asdict(replace(item, failed=False)) for name, item in known.items()}
        text = json.dumps({"version": VERSION, "for": dict(facts), "levers": levers}, indent=1)
        path = self._folder / f"{key}.json"
        beside = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            beside.replace(path)
        except OSError as error:  # a volume that is full or read-only: this worker knows it all the same
            _LOG.warning("what was decided of levers cannot be written: %s", error.strerror)
            with suppress(OSError):
                beside.unlink()

    def _read(self, key: str) -> dict[str, Decision]:
        if self._folder is None:
            return {}
        try:
            file = _File.model_validate_json((self._folder / f"{key}.json").read_bytes())
        except (OSError, ValidationError):  # none yet, or none that can be used: then everything is tried
            return {}
        if file.version != VERSION:
            return {}
        return {name: self._judged(entry) for name, entry in file.levers.items()}

    def _judged(self, entry: _Entry) -> Decision:
        decision = Decision(**entry.model_dump())
        if decision.verdict == "trying" and self._now() - decision.at > TRIAL_S:
            return replace(decision, verdict="off", reason="a worker ended while it was tried")
        return decision


def finite(value: float) -> float | None:
    """Return `value`; None for an infinite one, which JSON has no number for."""
    return value if math.isfinite(value) else None
