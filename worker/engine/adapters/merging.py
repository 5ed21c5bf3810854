"""Changes merged into copies of a model's plain weights: a step then costs what it costs without adapters.

A layer's parameter points to the merged copy while a job runs, and to its own tensor before and after. The own tensor
is never written: so restoring is exact, whatever happened in between, takes microseconds, and a merge that fails or is
cancelled half-way has touched nothing. Merged copies stay for the next job with the same adapters, as many as fit a
budget; compiled graphs read them like any other weights.

A layer whose weights are quantized, offloaded, shared with another layer or not read by its own `forward` keeps its
hooks (`attaching.py`), as does every layer that the budget has no room for.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from worker.engine.adapters.attaching import Placed, Weighted, by_target
from worker.engine.adapters.targets import modules_of
from worker.engine.devices import is_out_of_memory

# The layers whose `forward` computes with `weight` and `bias` and nothing else.
_PLAIN_FORWARDS = {cls.forward for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class Merge:
    """The merged copies for one set of changes, the tensors that they stand in for, and the changes without a copy."""

    copies: list[tuple[nn.Parameter, int, Tensor]] = field(default_factory=list)  # parameter, its own address, copy
    others: list[Placed] = field(default_factory=list)
    byte_size: int = 0

    @property
    def is_current(self) -> bool:
        """True while the parameters are the very tensors that the copies were made of."""
        return all(
            parameter.data_ptr() == address and parameter.device == copy.device
            for parameter, address, copy in self.copies
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the parameters point to their copies, and to their own tensors again at the end."""
        own: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter, _, copy in self.copies:
                own.append((parameter, parameter.data))
                parameter.data = copy
            yield
        finally:
            for parameter, tensor in own:
                parameter.data = tensor


class MergeCache:
    """Merged copies for all resident pipelines, the least recently used of each first. Engine's thread only.

    Each pipeline keeps those of its last `capacity` sets of adapters. `limit` is the most bytes that all of them may
    have, None for half of the memory that a job leaves; with 0 nothing is merged.
    """

    def __init__(self, capacity: int, limit: int | None = None) -> None:
        self._capacity = capacity
        self._limit = limit
        self._kept: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Merge]] = WeakKeyDictionary()

    @property
    def byte_size(self) -> int:
        """Bytes of all copies that are kept."""
        return sum(merge.byte_size for merges in self._kept.values() for merge in merges.values())

    def clear(self) -> None:
        """Drop all copies that are kept."""
        self._kept.clear()

    @contextmanager
    def applied(
        self,
        pipe: Any,
        denoiser: nn.Module,
        key: Hashable,
        changes: Sequence[Placed],
        room: Callable[[], int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[list[Placed]]:
        """Merge what can be merged of `changes`, and yield the others; afterwards the weights are as before.

        `key` is the same for the same changes in `denoiser`'s pipeline. `room` returns the bytes that a job leaves free
        on the device, `check` raises where it has to stop.
        """
        if self._limit == 0:
            yield list(changes)
            return
        merges = self._kept.setdefault(denoiser, OrderedDict())
        merge = merges.get(key)
        if merge is None or not merge.is_current:
            merges.pop(key, None)
            with torch.no_grad():
                merge = self._merged(pipe, denoiser, changes, room, check)
            if merge.copies:
                merges[key] = merge
        if key in merges:
            merges.move_to_end(key)
        try:
            with merge.swapped():
                yield merge.others
        finally:
            while len(merges) > self._capacity:
                merges.popitem(last=False)

    def _merged(
        self,
        pipe: Any,
        denoiser: nn.Module,
        changes: Sequence[Placed],
        room: Callable[[], int] | None,
        check: Callable[[], None],
    ) -> Merge:
        targets = by_target(changes)
        layers = _plain_layers(pipe, targets)
        wanted = sum(map(_size, layers.values()))
        budget = self._make_room(denoiser, wanted, room)
        merge = Merge()
        try:
            for (component, path), parts in targets.items():
                layer = layers.get((component, path))
                if layer is None or merge.byte_size + _size(layer) > budget:
                    merge.others += [(component, path, change, weight) for change, weight in parts]
                    continue
                check()
                copies = _copies(layer, parts)
                merge.copies += copies
                merge.byte_size += sum(copy.nbytes for _, _, copy in copies)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
            self.clear()
            return Merge(others=list(changes))
        return merge

    def _make_room(self, denoiser: nn.Module, wanted: int, room: Callable[[], int] | None) -> int:
        """Drop older copies until `wanted` bytes are within the budget, and return what is left of it for new ones."""
        kept = self.byte_size
        limit = self._limit
        if room is not None:
            free = max(0, room() + kept)
            limit = free // 2 if limit is None else min(limit, free)
        if limit is None:
            return wanted
        # Those of other pipelines first: their next job is further away than this one's.
        for owner in sorted(self._kept, key=lambda owner: owner is denoiser):
            merges = self._kept[owner]
            while merges and kept + wanted > limit:
                kept -= merges.popitem(last=False)[1].byte_size
        return limit - kept


def _plain_layers(pipe: Any, targets: Mapping[tuple[str, str], Sequence[Weighted]]) -> dict[tuple[str, str], nn.Module]:
    """Return the layers whose changes can all be merged: several on one layer are merged together or not at all."""
    layers: dict[tuple[str, str], nn.Module] = {}
    for component in dict.fromkeys(component for component, _ in targets):
        owner = getattr(pipe, component)
        modules = modules_of(owner)
        if any(_is_offloaded(module) for module in modules.values()):
            continue
        owners: dict[int, int] = {}
        for module in modules.values():
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for (name, path), parts in targets.items():
            module = modules.get(path)
            if name != component or module is None or not _is_plain(module, owners):
                continue
            if all(change.merges(module) for change, _ in parts):
                layers[name, path] = module
    return layers


def _is_offloaded(module: nn.Module) -> bool:
    """True of a module whose weights come and go: accelerate's offloading, or diffusers' by groups."""
    if "_hf_hook" in vars(module):
        return True
    registry = vars(module).get("_diffusers_hook")
    return registry is not None and any("group_offloading" in name for name in registry.hooks)


def _is_plain(module: nn.Module, owners: Mapping[int, int]) -> bool:
    if type(module).forward not in _PLAIN_FORWARDS or "forward" in vars(module):
        return False
    parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    return module._parameters.get("weight") is not None and all(
        type(parameter) is nn.Parameter
        and type(parameter.data) is Tensor
        and not parameter.is_meta
        and parameter.dtype in _PLAIN_DTYPES
        and owners[id(parameter)] == 1
        for parameter in parameters
    )


def _size(layer: nn.Module) -> int:
    """Return the bytes that copies of a layer's weight and bias have."""
    return sum(parameter.nbytes for parameter in layer._parameters.values() if parameter is not None)


def _copies(layer: nn.Module, parts: Sequence[Weighted]) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Return copies of a layer's weight and bias with the changes in them, computed in float32 and rounded once."""
    weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
    copies = []
    if weight is not None:
        total = own = weight.data.float()
        for change, factor in parts:
            total = change.merged(total, own, factor)
        if total is not own:
            copies.append((weight, weight.data_ptr(), _as(weight, total)))
    if bias is not None:
        total = own = bias.data.float()
        for change, factor in parts:
            difference = change.bias_difference(own)
            if difference is not None:
                total = torch.add(total, difference.reshape(own.shape), alpha=factor)
        if total is not own:
            copies.append((bias, bias.data_ptr(), _as(bias, total)))
    for change, _ in parts:
        change.rest()
    return copies


def _as(parameter: nn.Parameter, total: Tensor) -> Tensor:
    """Return `total` in the dtype and the memory layout of `parameter`."""
    if total.dtype == parameter.dtype and total.stride() == parameter.stride():
        return total
    return torch.empty_like(parameter.data).copy_(total)
