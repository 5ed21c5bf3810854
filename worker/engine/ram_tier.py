"""The tier between device and disk: a model that made room for another waits in the host's memory, and is copied back.

On a GPU its weights are copied into pinned memory, once: they are never written, so the copies stay good when the model
is on the device again, as long as the budget has room for them. On a CPU the device's memory is the host's, and a model
that waits is left as it is. Offloaded models are in the host's memory as well.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
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
        return beside + sum(map(size_of, self._waiting.values()))

    def put(self, key: str, resident: Resident) -> bool:
        """Take in a model that is no longer used; False, and it is to be dropped, where there is no room for it."""
        size = size_of(resident)
        if not self._make_room(size - resident.copied_bytes, besides=resident):
            return False
        forget(resident.pipe)  # its adapters' tensors would stay on the device
        try:
            if self.is_apart and resident.plan.offload == "none":
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
        if plan.weight_bytes + plan.reserve_bytes > probe(self._device).free_bytes:
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
            held -= size_of(self._waiting.popitem(last=False)[1])
        return held + size <= limit

    def _to_host(self, resident: Resident) -> None:
        copies = {}
        for tensor in _tensors(resident.pipe):
            known = resident.copies.get(id(tensor))
            if known is not None and known.is_of(tensor):
                copies[id(tensor)] = known
                continue
            copy = torch.empty_like(tensor.data, device="cpu", pin_memory=self._device.type == "cuda")
            copies[id(tensor)] = HostCopy(tensor, copy.copy_(tensor.data, non_blocking=True))
        self._wait()
        for copied in copies.values():
            copied.tensor.data = copied.copy
        resident.copies = copies

    def _to_device(self, resident: Resident) -> None:
        for copied in resident.copies.values():
            copied.tensor.data = copied.copy.to(self._device, non_blocking=True, copy=True)
            copied.address = copied.tensor.data_ptr()
        self._wait()

    def _wait(self) -> None:
        """Wait for copies that were only begun."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def size_of(resident: Resident) -> int:
    """Return the bytes of a model's weights and buffers, wherever they are."""
    return sum(tensor.nbytes for tensor in _tensors(resident.pipe))


def _tensors(pipe: Any) -> Iterator[Tensor]:
    """Yield every parameter and buffer of a pipeline's components, once."""
    seen: set[int] = set()
    for part in pipe.components.values():
        if not isinstance(part, nn.Module):
            continue
        for tensor in (*part.parameters(), *part.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
