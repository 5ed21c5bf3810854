"""Checkpoints: everything that a training needs to go on to the same bits, as safetensors and JSON."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_NAME = "step-{:06d}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step`: the adapter's weights, the optimizer's moments, and the losses until then.

    There is no state of random numbers: those of a step follow from the seed and the step's number.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Write it below `folder`; it appears whole or not at all. Returns its own folder."""
        target = folder / _NAME.format(self.step)
        partial = folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(dict(self.weights), partial / "adapter.safetensors")
        save_file(dict(self.optimizer), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": self.step, **self.facts}, indent=1))
        for file in partial.iterdir():
            _to_disk(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return target

    @classmethod
    def latest(cls, folder: Path) -> "Checkpoint | None":
        """Read the last checkpoint below `folder`; None where there is none."""
        found = sorted(folder.glob("step-*/state.json"))
        if not found:
            return None
        facts = json.loads(found[-1].read_text())
        place = found[-1].parent
        weights, optimizer = load_file(place / "adapter.safetensors"), load_file(place / "optimizer.safetensors")
        return cls(facts.pop("step"), weights, optimizer, facts)


def keep_last(folder: Path, count: int) -> None:
    """Delete all checkpoints but the last `count`."""
    for each in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(each, ignore_errors=True)


def _to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Return an optimizer's state by the names of its parameters."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{key}": torch.as_tensor(value).detach().cpu().clone()
        for index, values in state.items()
        for key, value in values.items()
    }


def set_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("|")
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
