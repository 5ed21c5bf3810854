"""Caches of jobs' adapters beside resident pipelines, for the next job that brings the same."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from worker.engine.adapters.matching import DENOISERS
from worker.engine.devices import is_out_of_memory

Item = TypeVar("Item")


class AdapterCache(OrderedDict[Hashable, Item]):
    """The adapters that one pipeline keeps, the least recently used first."""

    def take(self, key: Hashable, load: Callable[[], Item]) -> Item:
        """Return the item of `key`, loaded if it is not here."""
        if key not in self:
            self[key] = load()
        self.move_to_end(key)
        return self[key]


class AdapterCaches(WeakKeyDictionary[nn.Module, AdapterCache[Item]], Generic[Item]):
    """A cache for each resident pipeline. Used from the engine's thread only.

    A cache stands under the pipeline's denoiser: all views of a pipeline share that, and an evicted one takes its cache
    along.
    """

    _all: ClassVar[list[weakref.ref["AdapterCaches[Any]"]]] = []

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        AdapterCaches._all.append(weakref.ref(self, AdapterCaches._all.remove))

    @contextmanager
    def opened(self, denoiser: nn.Module) -> Iterator[AdapterCache[Item]]:
        """Open the cache of one pipeline for one job. During the job it keeps all that it takes, however many.

        Afterwards the last `capacity` items are left, and none where memory ran out.
        """
        cache = self.setdefault(denoiser, AdapterCache())
        try:
            yield cache
        except Exception as error:
            if is_out_of_memory(error):
                cache.clear()  # the next attempt has the room
            raise
        finally:
            while len(cache) > self._capacity:
                cache.popitem(last=False)


def forget(pipe: Any) -> None:
    """Drop the adapters that are kept beside `pipe`, of every kind: it leaves the device."""
    denoiser = denoiser_of(pipe)
    if denoiser is not None:
        for caches in [reference() for reference in AdapterCaches._all]:
            if caches is not None:
                caches.pop(denoiser, None)


def denoiser_of(pipe: Any) -> nn.Module | None:
    """Return a pipeline's denoiser, the first where it has two; None where it has none."""
    return next((part for name in DENOISERS if isinstance(part := getattr(pipe, name, None), nn.Module)), None)
