"""The bytes of memory that tensors hold while something is done: counted as they are made and as they go."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Counts new memory of tensors on the CPU, `now` and at `most`; in other threads where they call `everywhere`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        self._lock = threading.RLock()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(item) for item in tree_leaves((args, kwargs)) if _is_held(item)}
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if _is_held(item) and _storage(item) not in given:
                self._count(item.untyped_storage())
        return result

    def everywhere(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work` counted also where another thread does it."""

        def counted(*args: Any, **options: Any) -> Any:
            with self:
                return work(*args, **options)

        return counted

    def _count(self, storage: torch.UntypedStorage) -> None:
        with self._lock:
            if storage._cdata in self._known:
                return
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage: int, size: int) -> None:
        with self._lock:
            self._known.discard(storage)
            self.now -= size


def _is_held(item: object) -> bool:
    return isinstance(item, torch.Tensor) and item.device.type == "cpu"


def _storage(item: torch.Tensor) -> int:
    return int(item.untyped_storage()._cdata)
