"""What ai-toolkit has saved: safetensors by their steps. Its `optimizer.pt` is a pickle, which nothing here reads."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from worker.training.adapter import hashes_of
from worker.training.ai_toolkit.config import NAME


@dataclass(frozen=True, slots=True)
class Save:
    """The adapter after a step."""

    file: Path
    step: int

    def deliver(self, target: Path, metadata: dict[str, str]) -> None:
        """Write it at `target` with this metadata; it appears whole or not at all."""
        tensors = load_file(self.file)
        partial = target.with_suffix(".partial")
        save_file(tensors, partial, metadata={**metadata, **hashes_of(tensors)})
        partial.replace(target)


def latest(folder: Path, until: float = inf) -> Save | None:
    """Return the last save in the folder of a job, of a step no later than `until`."""
    return max((each for each in _saves(folder)[0] if each.step <= until), key=lambda each: each.step, default=None)


def drop_after(folder: Path, step: float) -> None:
    """Delete the saves of later steps."""
    for save in _saves(folder)[0]:
        if save.step > step:
            save.file.unlink()


def drop_broken(folder: Path) -> None:
    """Delete files that were cut off while they were written: it would begin at the newest one, and fail."""
    for file in _saves(folder)[1]:
        file.unlink()


def _saves(folder: Path) -> tuple[list[Save], list[Path]]:
    whole, broken = list[Save](), list[Path]()
    for file in sorted(folder.glob(f"{NAME}*.safetensors")):
        try:
            with safe_open(file, "pt") as header:
                facts = json.loads((header.metadata() or {}).get("training_info", "{}"))
            whole.append(Save(file, int(facts["step"])))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            broken.append(file)
    return whole, broken
