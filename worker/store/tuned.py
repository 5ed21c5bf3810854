"""Whole models that were trained here, by name: a folder for each, with the models of its last steps and their base."""

import os
import re
import shutil
from pathlib import Path

FOLDER = "tuned"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BASE = "base"
_KEPT = 2  # a job that was accepted with the one before may not have it in memory yet


class TunedModels:
    """The whole models below `volume`. Everything here is blocking."""

    def __init__(self, volume: Path) -> None:
        self._root = volume / FOLDER

    def find(self, name: str) -> tuple[Path, str] | None:
        """Return the newest folder of the model `name`, and the id of the model that it was trained from."""
        if not _NAME.fullmatch(name):
            return None
        models, base = sorted((self._root / name).glob("step-*")), self._root / name / _BASE
        return (models[-1], base.read_text()) if models and base.is_file() else None

    def place(self, name: str) -> Path:
        """Return the folder of a name."""
        return self._root / name

    def put(self, name: str, model: Path, base: str) -> None:
        """Have the model in a folder found by `name` from now on; it appears whole or not at all."""
        place = self.place(name)
        target, partial = place / model.name, place / f".{model.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / _BASE).write_text(base)
        shutil.copytree(model, partial, copy_function=link)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        steps = sorted(place.glob("step-*"))
        # Later ones are of what it went back from, to its best step.
        for each in [*steps[: max(0, steps.index(target) + 1 - _KEPT)], *steps[steps.index(target) + 1 :]]:
            shutil.rmtree(each, ignore_errors=True)


def link(source: str | Path, target: str | Path) -> None:
    """Have a file in a second place, by a link if the disk has such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
