"""A model that was trained whole: the entry that it was trained from, with other files."""

from pathlib import Path
from typing import Any

from worker.core.model import ModelSource, ModelSpec


def in_its_place(entry: ModelSpec, folder: Path) -> ModelSpec:
    """Return an entry with the whole model in `folder` in the place of its own files."""
    source = ModelSource(scheme="file", locator=str(folder.resolve()))
    own: dict[str, Any] = {"variant": None, "base": None, "vae": None, "components": {}, "config": None}
    return entry.model_copy(update={**own, "source": source})


def named(name: str, entry: ModelSpec | None, folder: Path) -> ModelSpec:
    """Return the model in `folder` under a name of its own, with all else as `entry` has it, where there is one."""
    if entry is None:
        return ModelSpec(id=name, source=ModelSource(scheme="file", locator=str(folder.resolve())))
    alone: dict[str, Any] = {"id": name, "aliases": (), "version": None, "split": {}, "paired": 0}
    return in_its_place(entry, folder).model_copy(update={**alone, "golden": {}, "fallback": None})
