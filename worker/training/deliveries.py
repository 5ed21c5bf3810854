"""What a training delivers at its checkpoints: an adapter's files under one name, or a folder for each whole model.

A whole model appears under a name of its own step: who has an earlier one in memory never takes it for a later one.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.training import best
from worker.training.hosts import Learner
from worker.training.whole_model import WEIGHTS, linked

_MODELS = 2
_STEP = "step-{:06d}"


class Delivery(Protocol):
    """Where what is learnt goes at a checkpoint. Everything here is blocking."""

    checkpoints: int
    """How many checkpoints are kept: those of whole models are large."""

    def file(self, step: int) -> Path:
        """Return the file, or the folder, of this step."""
        ...

    def files(self, step: int) -> tuple[Path, ...]:
        """Return all that is delivered, in each of its forms."""
        ...

    def write(self, learner: Learner, step: int, metadata: Mapping[str, str]) -> None:
        """Deliver what is learnt by now; it appears whole or not at all."""
        ...

    def weights(self, step: int) -> Path | None:
        """Return a file of the very weights that a checkpoint of this step holds; None where there is none."""
        ...

    def keep_best(self, step: int) -> None:
        """Keep what was delivered last, whatever is delivered later. Called before the step's checkpoint."""
        ...

    def forget(self, step: int, best_step: int | None, *, is_best: bool) -> None:
        """Delete what is needed no more, after the checkpoint of this step."""
        ...

    def take_best(self, step: int) -> bool:
        """Deliver what is kept of a step; False if it is not there."""
        ...


@dataclass(slots=True)
class AdapterDelivery:
    """An adapter or a word: the same files at each checkpoint, with the best one beside."""

    folder: Path
    name: str
    checkpoints: int = 2

    def file(self, step: int) -> Path:
        """Return the file as diffusers spells it."""
        return self.folder / f"{self.name}.safetensors"

    def files(self, step: int) -> tuple[Path, ...]:
        """Return the file in both spellings, where it has two."""
        file = self.file(step)
        kohya = file.with_name(f"{self.name}-kohya.safetensors")
        return tuple(each for each in (file, kohya) if each.exists())

    def write(self, learner: Learner, step: int, metadata: Mapping[str, str]) -> None:
        """Write the file over the one before."""
        learner.write(self.file(step), metadata)

    def weights(self, step: int) -> Path | None:
        """Return None: a checkpoint has other names."""
        return None

    def keep_best(self, step: int) -> None:
        """Copy the files."""
        best.keep(self._best, step, self.files(step))

    def forget(self, step: int, best_step: int | None, *, is_best: bool) -> None:
        """Delete the files of the best step before."""
        if is_best:
            best.keep_only(self._best, step)

    def take_best(self, step: int) -> bool:
        """Copy the best step's files over those of the last."""
        return best.take(self._best, step, self.files(step))

    @property
    def _best(self) -> Path:
        return self.folder / "best"


@dataclass(slots=True)
class ModelDelivery:
    """A whole model as diffusers reads it: a folder for each of the last checkpoints, and for the best one."""

    folder: Path
    is_averaged: bool
    checkpoints: int = 1

    @property
    def parts(self) -> Path:
        """The folder of the parts that are not trained."""
        return self.folder / "parts"

    def file(self, step: int) -> Path:
        """Return the folder of a step's model."""
        return self.folder / "model" / _STEP.format(step)

    def files(self, step: int) -> tuple[Path, ...]:
        """Return the folder."""
        return (self.file(step),)

    def write(self, learner: Learner, step: int, metadata: Mapping[str, str]) -> None:
        """Write the trained part beside links to the others."""
        target = self.file(step)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        linked(self.parts, partial)
        learner.write(partial, metadata)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def weights(self, step: int) -> Path | None:
        """Return the trained part's file, unless it has the mean of the steps."""
        found = [] if self.is_averaged else [*self.file(step).glob(f"*/{WEIGHTS}")]
        trained = [each for each in found if not (self.parts / each.parent.name).exists()]
        return trained[0] if trained else None

    def keep_best(self, step: int) -> None:
        """Do nothing: `forget` leaves it where it is."""

    def forget(self, step: int, best_step: int | None, *, is_best: bool) -> None:
        """Delete the models of all steps but the last ones and the best."""
        models = sorted(self.folder.glob("model/step-*"))
        for each in models[:-_MODELS]:
            if best_step is None or each != self.file(best_step):
                shutil.rmtree(each, ignore_errors=True)

    def take_best(self, step: int) -> bool:
        """Return whether the best step's model is there: it has its own place."""
        return self.file(step).is_dir()
