"""The end of a split by itself: an arm that fails more often than the other, or is slower, gets no further job.

Each process judges by the jobs that it saw itself, so several of them need a few more jobs in all. The change is one
line of the history like any other, and ends the split for every worker of the volume.
"""

import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

from worker.catalog.versions import ModelVersions, Split
from worker.core.errors import WorkerError
from worker.core.version import STABLE, HaltRule, VersionChoice
from worker.service.usage.record import OK, Record
from worker.service.versions.changes import By, VersionChanges
from worker.service.versions.serving import Versions

_LOG = logging.getLogger("worker")
RECENT = 20  # the jobs of an arm that count: what went well long ago excuses nothing
_LONGER = 100  # of the arm that is compared with
WHO = "halt rule"


@dataclass(slots=True)
class _Arm:
    """The last jobs of an arm: whether each failed, and the seconds of inference of those that did not."""

    failed: deque[bool] = field(default_factory=lambda: deque(maxlen=_LONGER))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_LONGER))


@dataclass(slots=True)
class _Trial:
    """One split under observation."""

    split: Split
    arms: dict[str, _Arm] = field(default_factory=dict)
    over: bool = False


class Halting:
    """An observer of operations that ends splits."""

    def __init__(self, versions: Versions, changes: VersionChanges) -> None:
        self._versions = versions
        self._changes = changes
        self._trials: dict[str, _Trial] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="halting")

    def note(self, record: Record) -> None:
        """Count one job of an arm, and have the split ended in the background where that is due."""
        choice = record.choice
        if choice is None or choice.arm is None or record.status not in (OK, "failed", "timed_out"):
            return
        model = self._versions.last_read(choice.model)
        if model.split is None:
            return
        trial = self._trials.get(choice.model)
        if trial is None or trial.split != model.split:
            trial = self._trials[choice.model] = _Trial(model.split)
        arm = trial.arms.setdefault(choice.arm, _Arm())
        arm.failed.append(record.status != OK)
        if record.timings is not None:
            arm.seconds.append(record.timings.inference_s)
        self._judge(trial, model, choice)

    def close(self) -> None:
        """Return once everything is written."""
        self._thread.shutdown()

    def _judge(self, trial: _Trial, model: ModelVersions, choice: VersionChoice) -> None:
        basis, name = basis_of(model, trial.split.arms), choice.arm or STABLE
        if trial.over or name == basis:
            return
        why = reason_to_halt(name, trial.arms[name], basis, trial.arms.get(basis) or _Arm(), trial.split.halt)
        if why is not None:
            trial.over = True
            self._thread.submit(self._halt, trial, choice.model, name, why)

    def _halt(self, trial: _Trial, model: str, arm: str, why: str) -> None:
        try:
            ended = self._changes.halt(model, arm, trial.split.arms, By(WHO, why))
        except WorkerError as error:
            trial.over = False  # the next job tries again
            _LOG.error("the split of %s could not be ended: %s", model, error.message)
            return
        if ended:
            _LOG.warning("the split of %s is ended: %s", model, why)


def basis_of(model: ModelVersions, arms: Mapping[str, float]) -> str:
    """Return the arm that others are compared with: that of @stable, else the largest."""
    stable = model.stable
    for name in arms:
        if stable is not None and (model.find(name) or stable).name == stable.name:
            return name
    return max(arms, key=lambda name: arms[name])


def reason_to_halt(name: str, arm: _Arm, basis: str, other: _Arm, rule: HaltRule) -> str | None:
    """Return why an arm is halted; None while it is not."""
    recent = [*arm.failed][-RECENT:]
    failures, others = sum(recent), sum(other.failed)
    usual = others / len(other.failed) if other.failed else 0.0
    if len(recent) >= rule.jobs and failures / len(recent) > usual + rule.errors:
        return f"{name} failed {failures} of its last {len(recent)} jobs, and {basis} {others} of {len(other.failed)}"
    seconds, usually = [*arm.seconds][-RECENT:], [*other.seconds]
    if rule.slower is None or min(len(seconds), len(usually)) < rule.jobs:
        return None
    if median(seconds) > rule.slower * median(usually):
        return (
            f"{name} took {median(seconds):.3g} s for half of its last {len(seconds)} jobs or more, "
            f"and {basis} {median(usually):.3g} s"
        )
    return None
