"""Pipelines that stay on the device; the least recently used is evicted first.

Upscalers, which are small and work after another model, are counted apart: none of them ever evicts a pipeline.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from worker.core.device import LoadPlan
from worker.engine.devices import release_memory
from worker.engine.loader import view


@dataclass(slots=True)
class Resident:
    """A loaded pipeline, its own scheduler, which no job uses, and the other classes made of its components."""

    model: str
    plan: LoadPlan
    pipe: Any
    scheduler: Any
    users: int = 0
    is_upscaler: bool = False
    standing: object = None  # what the gate of levers knows of it
    _views: dict[str, Any] = field(default_factory=dict)

    def as_class(self, class_name: str) -> Any:
        """Return this pipeline's components as `class_name`."""
        if class_name not in self._views:
            self._views[class_name] = view(self.pipe, class_name)
        return self._views[class_name]


class PipelinePool:
    """A pool of at most `capacity` pipelines and as many upscalers. Used from the engine's thread only."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    @property
    def items(self) -> list[tuple[str, Resident]]:
        """The residents by their keys, most recently used last."""
        return list(self._residents.items())

    @property
    def residents(self) -> list[Resident]:
        """The residents, most recently used last."""
        return list(self._residents.values())  # asked from other threads

    @property
    def models(self) -> list[str]:
        """Ids of the resident models, most recently used last."""
        return [resident.model for resident in self.residents]

    def get(self, key: str) -> Resident | None:
        """Return the resident of `key`, if any."""
        return self._residents.get(key)

    @contextmanager
    def lease(self, key: str, load: Callable[[], Resident], *, is_upscaler: bool = False) -> Iterator[Resident]:
        """Lease the resident of `key`, loaded if need be. It is not evicted while it is leased."""
        resident = self._residents.get(key)
        if resident is None:
            self._make_room(is_upscaler=is_upscaler)
            resident = load()
            resident.is_upscaler = is_upscaler
            self._residents[key] = resident
        self._residents.move_to_end(key)
        resident.users += 1
        try:
            yield resident
        finally:
            resident.users -= 1

    def evict(self, key: str) -> bool:
        """Drop a resident that is not in use and release its memory; False when there is none."""
        resident = self._residents.get(key)
        if resident is None or resident.users:
            return False
        del self._residents[key]
        release_memory()
        return True

    def evict_model(self, model: str) -> int:
        """Drop every resident of a model id; returns how many there were."""
        keys = [key for key, resident in self._residents.items() if resident.model == model]
        return sum(self.evict(key) for key in keys)

    def evict_unused(self) -> None:
        """Drop everything that is not leased now."""
        for key in [*self._residents]:
            self.evict(key)

    def _make_room(self, *, is_upscaler: bool) -> None:
        """Evict for one more of a kind."""
        alike = [key for key, resident in self._residents.items() if resident.is_upscaler == is_upscaler]
        surplus = len(alike) + 1 - self._capacity
        for key in alike:
            if surplus <= 0:
                break
            surplus -= self.evict(key)
