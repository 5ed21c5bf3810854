"""The best checkpoint by the loss on images held out: which it is, its files, and when to wait no longer."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

_NAME = "step-{:06d}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Losses at checkpoints, each with its step. A loss that is no number is worse than any."""

    losses: Sequence[tuple[int, float]]

    @classmethod
    def of(cls, losses: Iterable[tuple[int, float]], every: int, last: int) -> "Measured":
        """Return those of steps that are a multiple of `every`, and of the last: a cancel measures at any step."""
        return cls([(step, loss) for step, loss in losses if step % every == 0 or step == last])

    @property
    def best(self) -> int | None:
        """The step of the lowest loss, the first of several."""
        numbers = [(loss if isfinite(loss) else inf, step) for step, loss in self.losses]
        return min(numbers)[1] if numbers else None

    def is_over(self, patience: int) -> bool:
        """True once `patience` measurements came after the best one."""
        return sum(step > (self.best or 0) for step, _ in self.losses) >= patience


def keep(folder: Path, step: int, files: Sequence[Path]) -> None:
    """Copy the files of a checkpoint below `folder`; they appear whole or not at all."""
    target = folder / _NAME.format(step)
    partial = folder / f".{target.name}.partial"
    for each in (partial, target):
        shutil.rmtree(each, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, partial / file.name)
    partial.rename(target)


def keep_only(folder: Path, step: int) -> None:
    """Delete all that is kept below `folder`, but that of one step."""
    for each in folder.glob("*step-*"):
        if each.name != _NAME.format(step):
            shutil.rmtree(each, ignore_errors=True)


def take(folder: Path, step: int, files: Sequence[Path]) -> bool:
    """Put what is kept of a step in the place of `files`, each whole or not at all; False if it is not there."""
    kept = [folder / _NAME.format(step) / file.name for file in files]
    if not kept or not all(each.exists() for each in kept):
        return False
    for source, file in zip(kept, files, strict=True):
        partial = file.with_suffix(".partial")
        shutil.copyfile(source, partial)
        partial.replace(file)
    return True
