"""The tier between device and disk: a model that made room for another waits in the host's memory, and is copied back.

On a GPU its weights are copied into pinned memory, once: they are never written, so the copies stay good when the model
is on the device again, as long as the budget has room for them. A part that a model on the device shares (`sharing.py`)
stays there. On a CPU the device's memory is the host's, and a model
that waits is left as it is. Offloaded models are in the host's memory as well.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from worker.engine.adapters.adapter_cache import forget
from worker.engine.devices import is_out_of_memory, probe
from worker.engine.machine import ram
from worker.engine.resident import HostCopy, Resident

_LOG = logging.getLogger(__name__)


class RamTier:
    """The models that wait, the one that has waited longest first. Used from the engine's thread only.

    `limit` is the most bytes of the host's memory that they may have, None for half of what is free, 0 for none.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self._device = device
        self._limit = limit
        self.in_use: Callable[[], set[int]] = set
        """Returns the ids of the tensors of the models on the device."""
        self._host: WeakValueDictionary[int, HostCopy] = WeakValueDictionary()  # by the tensor's id
        self._waiting: OrderedDict[str, Resident] = OrderedDict()
        # Models that are on the device again, beside their copies
        self._copied: WeakValueDictionary[str, Resident] = WeakValueDictionary()

    @property
    def is_apart(self) -> bool:
        """True if the device has a memory of its own: a CPU has the host's, and Apple's GPUs share it."""
        return bool(self._device.type == "cuda")

    @property
    def models(self) -> list[str]:
        """Ids of the models that wait."""
        return [resident.model for resident in list(self._waiting.values())]

    @property
    def byte_size(self) -> int:
        """Bytes of the host's memory that the tier has."""
        beside = sum(resident.copied_bytes for resident in self._copied.values())
        return beside + size_of(*self._waiting.values(), but=self.in_use())

    def put(self, key: str, resident: Resident) -> bool:
        """Take in a model that is no longer used; False, and it is to be dropped, where there is no room for it."""
        plan = resident.plan
        if self.is_apart and (plan.offload == "group" or plan.cards):  # a part of it is somewhere else already
            return False
        size = size_of(resident, but=self.in_use())
        if not self._make_room(size - resident.copied_bytes, besides=resident):
            return False
        forget(resident.pipe)  # its adapters' tensors would stay on the device
        try:
            if self.is_apart and plan.offload == "none":
                self._to_host(resident)
        except Exception as error:  # a library's own kind of weights, which do not move; then it is loaded anew
            _LOG.info("%s cannot wait in memory (%s)", resident.model, type(error).__name__)
            return False
        self._copied.pop(key, None)
        self._waiting[key] = resident
        return True

    def take(self, key: str) -> Resident | None:
        """Return the model of `key`, on the device again; None where it does not wait here, or no longer fits."""
        resident = self._waiting.pop(key, None)
        if resident is None or not self.is_apart or resident.plan.offload != "none":
            return resident
        plan = resident.plan
        used = self.in_use()
        shared = sum(tensor.nbytes for tensor in tensors_of(resident.pipe) if id(tensor) in used)
        if plan.weight_bytes + plan.reserve_bytes - shared > probe(self._device).free_bytes:
            return None
        try:
            self._to_device(resident)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        self._copied[key] = resident
        return resident

    def drop_model(self, model: str) -> int:
        """Drop a model that waits, by its id; returns how many there were."""
        keys = [key for key, resident in self._waiting.items() if resident.model == model]
        for key in keys:
            del self._waiting[key]
        return len(keys)

    def drop_sharing(self, tensors: Collection[int]) -> None:
        """Drop the models that wait and have any of these tensors, by their ids."""
        for key, resident in list(self._waiting.items()):
            if any(id(tensor) in tensors for tensor in tensors_of(resident.pipe)):
                del self._waiting[key]

    def drop_stranded(self) -> None:
        """Drop models that wait with a part still on the device, where no model there has it any more."""
        if not self.is_apart:
            return
        used = self.in_use()
        for key, resident in list(self._waiting.items()):
            left = {id(tensor) for tensor in tensors_of(resident.pipe)} - resident.copies.keys() - used
            if left and resident.plan.offload == "none":
                del self._waiting[key]

    def clear(self) -> None:
        """Give all of the tier's memory back."""
        self._waiting.clear()
        for resident in self._copied.values():
            resident.copies.clear()
        self._copied.clear()

    def _make_room(self, size: int, besides: Resident) -> bool:
        """Drop copies of models on the device, then models that wait, until `size` bytes more are within the limit."""
        held = self.byte_size
        limit = (ram()[1] + held) // 2 if self._limit is None else self._limit
        if not limit or size + besides.copied_bytes > limit:
            return False
        for key, resident in list(self._copied.items()):
            if held + size <= limit:
                return True
            if resident is not besides:
                held -= resident.copied_bytes
                resident.copies.clear()
                del self._copied[key]
        while held + size > limit and self._waiting:
            self._waiting.popitem(last=False)
            held = self.byte_size
        return held + size <= limit

    def _to_host(self, resident: Resident) -> None:
        copies, used = {}, self.in_use()
        for tensor in tensors_of(resident.pipe):
            if id(tensor) in used:
                continue
            known = resident.copies.get(id(tensor)) or self._host.get(id(tensor))
            if known is not None and known.is_of(tensor):
                copies[id(tensor)] = known
                continue
            copy = torch.empty_like(tensor.data, device="cpu", pin_memory=self._device.type == "cuda")
            copies[id(tensor)] = HostCopy(tensor, copy.copy_(tensor.data, non_blocking=True))
        self._wait()
        for copied in copies.values():
            copied.tensor.data = copied.copy
        resident.copies = copies
        self._host.update(copies)

    def _to_device(self, resident: Resident) -> None:
        used = self.in_use()
        missing = {id(tensor) for tensor in tensors_of(resident.pipe)} - resident.copies.keys() - used
        resident.copies |= {key: self._host[key] for key in missing if key in self._host}
        for key, copied in resident.copies.items():
            if key in used:
                continue
            copied.tensor.data = copied.copy.to(self._device, non_blocking=True, copy=True)
            copied.address = copied.tensor.data_ptr()
        self._wait()

    def _wait(self) -> None:
        """Wait for copies that were only begun."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def size_of(*residents: Resident, but: Collection[int] = ()) -> int:
    """Return the bytes of models' weights and buffers, wherever they are: what they share once.

    Tensors whose ids are in `but` do not count.
    """
    sizes = {id(tensor): tensor.nbytes for resident in residents for tensor in tensors_of(resident.pipe)}
    return sum(size for key, size in sizes.items() if key not in but)


def tensors_of(pipe: Any) -> Iterator[Tensor]:
    """Yield every parameter and buffer of a pipeline's components, once."""
    seen: set[int] = set()
    for part in pipe.components.values():
        if not isinstance(part, nn.Module):
            continue
        for tensor in (*part.parameters(), *part.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
