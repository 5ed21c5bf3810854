"""The models on the volume, for the operator: what lies there, pinned, removed, or fetched before the first job."""

from collections.abc import Sequence

from worker.core.errors import ModelNotFound
from worker.core.model import ModelFiles
from worker.core.result import ignore_progress
from worker.core.turn import begun
from worker.service.accepting.resolving import ModelResolver
from worker.service.limits.pools import Pools
from worker.service.local.provisioning import Provisioner
from worker.store.cache import VolumeCache
from worker.store.entries import ASIDE, Entry


class Volume:
    """The volume's cache, each call in a thread of the pools. `max_bytes` is what it may hold; None is no limit."""

    def __init__(
        self,
        cache: VolumeCache,
        resolver: ModelResolver,
        provisioner: Provisioner,
        pools: Pools,
        max_bytes: int | None = None,
    ) -> None:
        self._cache = cache
        self._resolver = resolver
        self._provisioner = provisioner
        self._pools = pools
        self.max_bytes = max_bytes

    async def contents(self) -> tuple[Sequence[Entry], int]:
        """Return what lies there, the last used first, and the bytes of all files, of unfinished downloads too."""
        return await self._pools.own.run(lambda: (self._listed(), self._cache.used_bytes()))

    async def pin(self, name: str, *, pinned: bool) -> None:
        """Never evict what is called `name`, or let it be evicted again. Raises ModelNotFound."""

        def work() -> None:
            for entry in self._matching(name):
                self._cache.pin(entry, pinned=pinned)

        await self._pools.own.run(work)

    async def remove(self, name: str) -> int:
        """Remove what is called `name`, in use or not, and return the bytes given back. Raises ModelNotFound."""
        return await self._pools.own.run(lambda: sum(map(self._cache.remove, self._matching(name))))

    async def pull(self, model: str, caller: str | None = None) -> ModelFiles:
        """Fetch the files of a model, and load nothing. Raises as a job does whose model cannot be had."""
        with begun(caller) as turn:
            place = self._resolver.host_of(model)
            spec = self._resolver.resolve(model)
            known = await self._pools.headers.run(self._resolver.known, spec, place=place)
            fetch = self._provisioner.model_files
            return await self._pools.downloads.run(fetch, known, ignore_progress, turn.stop, place=place)

    def _listed(self) -> list[Entry]:
        return [entry for entry in self._cache.entries() if not entry.details.get(ASIDE)]

    def _matching(self, name: str) -> list[Entry]:
        entries = self._cache.matching(name)
        if not entries:
            raise ModelNotFound("Nothing on the volume has this name; GET /admin/cache lists what has.", field="name")
        return entries
