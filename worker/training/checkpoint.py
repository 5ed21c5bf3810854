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

from worker.store.tuned import link

_NAME = "step-{:06d}"
_NUMBER, _GROUP = "#", "#"  # what ends the name of a plain number, and begins that of a group of parameters
_DTYPES = {int: torch.int64, float: torch.float64, bool: torch.bool}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step`: the adapter's weights, the optimizer's moments, and the losses until then.

    There is no state of random numbers: those of a step follow from the seed and the step's number.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]

    def write(self, folder: Path, weights: Path | None = None) -> Path:
        """Write it below `folder`; it appears whole or not at all. Returns its own folder.

        `weights` is a file that holds its weights already: they are not written twice.
        """
        target = folder / _NAME.format(self.step)
        partial = folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            if weights is None:
                save_file(dict(self.weights), partial / "adapter.safetensors")
            else:
                link(weights, partial / "adapter.safetensors")
            save_file(dict(self.optimizer), partial / "optimizer.safetensors")
            (partial / "state.json").write_text(json.dumps({"step": self.step, **self.facts}, indent=1))
            for file in partial.iterdir():
                _to_disk(file)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk has room again for the one before
            raise
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


def write_whole(path: Path, facts: Mapping[str, Any]) -> None:
    """Write JSON; the file appears whole or stays as it was."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(path)


def keep_last(folder: Path, count: int) -> None:
    """Delete all checkpoints but the last `count`."""
    for each in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(each, ignore_errors=True)


def _to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Return an optimizer's state by the names of its parameters, and the numbers that it holds for all of them.

    It is read as it is: `state_dict` of some optimizers wraps it, and `load_state_dict` of torch's casts it.
    """
    tensors = {}
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            kind = "" if isinstance(value, torch.Tensor) else _NUMBER
            tensors[f"{name}|{key}{kind}"] = _tensor(value).detach().cpu().clone()
    for index, group in enumerate(optimizer.param_groups):
        numbers = {key: value for key, value in group.items() if type(value) in (int, float)}
        tensors |= {f"{_GROUP}{index}|{key}{_NUMBER}": _tensor(value) for key, value in numbers.items()}
    return tensors


def set_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = dict(zip(names, _parameters(optimizer), strict=True))
    for name, tensor in tensors.items():
        owner, _, spelled = name.rpartition("|")
        key = spelled.removesuffix(_NUMBER)
        value = tensor.item() if spelled != key else tensor
        if owner.startswith(_GROUP):
            optimizer.param_groups[int(owner.removeprefix(_GROUP))][key] = value
        else:
            parameter = parameters[owner]
            stays = spelled != key or key == "step"  # AdamW counts its steps on the CPU
            optimizer.state[parameter][key] = value if stays else tensor.to(parameter.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensor(value: Any) -> torch.Tensor:
    """Return a number as a tensor that holds it to the bit."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=_DTYPES[type(value)])
