"""Pipelines that stay on the device; the least recently used is evicted first.

Upscalers, which are small and work after another model, are counted apart: none of them ever evicts a pipeline.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.engine.context_parallel import end_ranks
from worker.engine.devices import release_memory
from worker.engine.ram_tier import RamTier, tensors_of
from worker.engine.resident import Resident
from worker.engine.sharing import SharedParts


class PipelinePool:
    """A pool of at most `capacity` pipelines and as many upscalers. Used from the engine's thread only.

    A model that makes room for another waits in `tier`. Models are loaded with `shared` opened.
    """

    def __init__(self, capacity: int, tier: RamTier) -> None:
        self._capacity = capacity
        self._tier = tier
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self.shared = SharedParts()
        tier.in_use = self._tensor_ids

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
            resident = self._tier.take(key) or load()
            resident.is_upscaler = is_upscaler
            self._residents[key] = resident
        self._residents.move_to_end(key)
        resident.users += 1
        try:
            yield resident
        finally:
            resident.users -= 1

    def evict(self, key: str, *, may_wait: bool = False) -> bool:
        """Drop a resident that is not in use and release its memory; False when there is none.

        One that `may_wait` does so in the host's memory, where there is room.
        """
        resident = self._residents.get(key)
        if resident is None or resident.users:
            return False
        del self._residents[key]
        if resident.plan.ranks > 1:
            end_ranks(resident.pipe)
        if not (may_wait and resident.plan.ranks == 1 and self._tier.put(key, resident)):
            del resident
            self._tier.drop_stranded()
            release_memory()
        return True

    def discard(self, key: str) -> bool:
        """Evict a resident that failed, and those that share a part with it: nobody knows what was left on it."""
        resident = self._residents.get(key)
        if resident is None or resident.users:
            return False
        self.shared.forget(resident.pipe.components)
        failed = {id(tensor) for tensor in tensors_of(resident.pipe)}
        sharing = [
            other
            for other, each in self._residents.items()
            if other != key and any(id(tensor) in failed for tensor in tensors_of(each.pipe))
        ]
        self._tier.drop_sharing(failed)
        del resident
        for other in sharing:
            self.evict(other)
        return self.evict(key)

    def evict_model(self, model: str) -> int:
        """Drop every resident of a model id, and those that wait; returns how many there were."""
        keys = [key for key, resident in self._residents.items() if resident.model == model]
        return sum(self.evict(key) for key in keys) + self._tier.drop_model(model)

    def evict_unused(self) -> None:
        """Give back the memory of everything that is not leased now: what waits goes too where that is of one kind."""
        for key in [*self._residents]:
            self.evict(key, may_wait=self._tier.is_apart)
        if not self._tier.is_apart:
            self._tier.clear()
            release_memory()

    def _tensor_ids(self) -> set[int]:
        return {id(tensor) for resident in self.residents for tensor in tensors_of(resident.pipe)}

    def _make_room(self, *, is_upscaler: bool) -> None:
        """Evict for one more of a kind."""
        alike = [key for key, resident in self._residents.items() if resident.is_upscaler == is_upscaler]
        surplus = len(alike) + 1 - self._capacity
        for key in alike:
            if surplus <= 0:
                break
            surplus -= self.evict(key, may_wait=True)
