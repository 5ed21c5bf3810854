"""Rehearsed calls on disk: latents and words are encoded once, and what encoded them is not needed afterwards."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from worker.core.fingerprint import fingerprint
from worker.training.rehearsal import DenoiserCall


@dataclass(frozen=True, slots=True)
class Lessons:
    """A folder of rehearsed calls. `model` tells models apart whose calls differ."""

    folder: Path
    model: str

    def weights(self, key: object, make: Callable[[], torch.Tensor]) -> Path:
        """Return the file of a mask's weights, made if it is not there yet."""
        path = self.folder / f"{fingerprint((self.model, 'mask', key))}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file({"weights": make().contiguous()}, partial)
            partial.replace(path)
        return path

    def call(self, key: object, rehearse: Callable[[], DenoiserCall]) -> Path:
        """Return the file of a call, rehearsed if it is not there yet."""
        path = self.folder / f"{fingerprint((self.model, key))}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_call(path, rehearse())
        return path


def write_call(path: Path, call: DenoiserCall) -> None:
    """Write a call's tensors, and as metadata where each belongs. The file appears whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}

    def put(value: Any) -> Any:
        match value:
            case torch.Tensor():
                tensors[name := str(len(tensors))] = value.detach().cpu().contiguous().clone()
                return {"tensor": name}
            case dict():
                return {"map": {key: put(each) for key, each in value.items()}}
            case list() | tuple():
                return {"list": [put(each) for each in value]}
            case _:
                return {"value": value}

    shape = {
        "arguments": put(dict(call.arguments)),
        "sample": call.sample_name,
        "time": call.time_name,
        "beside": call.beside,
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"call": json.dumps(shape)})
    partial.replace(path)


def read_call(path: Path, device: torch.device) -> DenoiserCall:
    """Read a call from its file onto `device`."""
    with safe_open(path, "pt") as file:
        shape = json.loads(file.metadata()["call"])

        def take(node: Mapping[str, Any]) -> Any:
            (kind, value), *_ = node.items()
            match kind:
                case "tensor":
                    return file.get_tensor(value).to(device)
                case "map":
                    return {key: take(each) for key, each in value.items()}
                case "list":
                    return [take(each) for each in value]
                case _:
                    return value

        beside = shape.get("beside")
        return DenoiserCall(
            take(shape["arguments"]), shape["sample"], shape["time"], beside=tuple(beside) if beside else None
        )


def read_weights(path: Path) -> torch.Tensor:
    """Read a mask's weights from their file."""
    with safe_open(path, "pt") as file:
        weights: torch.Tensor = file.get_tensor("weights")
    return weights


def grouped(calls: Sequence[DenoiserCall]) -> list[list[DenoiserCall]]:
    """Return the calls in as few groups as can be: alike ones can be joined, and others are alone."""
    groups: list[list[DenoiserCall]] = []
    for call in calls:
        fitting = (group for group in groups if group[0].beside == call.beside)
        group = next((group for group in fitting if _fit(group[0].arguments, call.arguments)), None)
        if group is None:
            groups.append([call])
        else:
            group.append(call)
    return groups


def _fit(one: Any, other: Any) -> bool:
    """True if two values can be one batch: tensors of one image each, or equal tensors without a batch."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape:
            return False
        return bool((one.ndim > 0 and one.shape[0] == 1) or torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_fit(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return not any(isinstance(each, torch.Tensor) for each in one) and bool(one == other)
    return type(one) is type(other) and bool(one == other)


def joined(calls: Sequence[DenoiserCall]) -> DenoiserCall:
    """Return one call for a group of calls. What all hold alike and is of no image, as ids, is shared."""
    first = calls[0]
    if len(calls) == 1:
        return first
    time = first.time_name  # as many as images, whatever form it was seen in
    rest = [{key: value for key, value in call.arguments.items() if key != time} for call in calls]
    arguments = {**_join(rest), time: first.arguments[time]}
    return DenoiserCall(arguments, first.sample_name, time, _weights(calls), first.beside)


def _weights(calls: Sequence[DenoiserCall]) -> torch.Tensor | None:
    if all(call.weight is None for call in calls):
        return None
    return torch.cat([torch.ones_like(call.clean.float()) if call.weight is None else call.weight for call in calls])


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values)) if first.ndim and first.shape[0] == 1 else first
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values]) for key in first}
    return first


def sizes_of(paths: Iterable[Path]) -> int:
    """Return the bytes of these files together."""
    return sum(path.stat().st_size for path in paths)
