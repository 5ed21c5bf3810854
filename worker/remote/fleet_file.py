"""Reader of fleet.yaml into the members of a gateway's fleet. Any mistake in it is one sentence, with its line."""

from collections.abc import Callable, Collection
from pathlib import Path
from types import MappingProxyType

from worker.catalog.operator_file import FileError, OperatorFile
from worker.catalog.registry import Registry
from worker.net.peer import Peer
from worker.remote.fleet_schema import FleetFile, ReplicaEntry
from worker.remote.members import Member
from worker.remote.platforms.http_worker import HttpWorker
from worker.remote.platforms.platform import Platform
from worker.remote.platforms.runpod_endpoint import BALANCER_URL, QUEUE_URL, RunPodEndpoint
from worker.remote.replica import Kind, ReplicaState

_GIB = 2**30


class FleetError(FileError):
    """A fleet.yaml that cannot be used. The message starts with `fleet.yaml:LINE: `, and holds no key."""


def read_fleet(path: Path, registry: Registry, secret: Callable[[str], str | None]) -> tuple[Member, ...]:
    """Read and check a fleet.yaml. `secret` returns the value of an environment variable. Raises FleetError."""
    return _Reading(path, registry, secret).members()


class _Reading(OperatorFile):
    """One reading of one fleet.yaml."""

    error = FleetError
    keys = "replicas"
    nested = MappingProxyType({"replicas": ReplicaEntry})

    def __init__(self, path: Path, registry: Registry, secret: Callable[[str], str | None]) -> None:
        super().__init__(path)
        self.registry = registry
        self.secret = secret

    def members(self) -> tuple[Member, ...]:
        """Return the members, in the order of the file."""
        file = self.parsed(FleetFile, self.data(), ())
        return tuple(Member(self.platform(name, entry), entry.concurrency) for name, entry in file.replicas.items())

    def platform(self, name: str, entry: ReplicaEntry) -> Platform:
        """Return the replica that an entry describes."""
        headers = self.headers(name, entry)
        if entry.runpod is not None:
            peer = Peer(f"{entry.url or QUEUE_URL}/{entry.runpod}", headers)
            return RunPodEndpoint(self.facts(name, entry, "runpod"), peer, entry.attempt_s)
        if entry.runpod_load_balancer is not None:
            peer = Peer(BALANCER_URL.format(entry.runpod_load_balancer), headers)
            return HttpWorker(self.facts(name, entry, "runpod-lb"), peer)
        return HttpWorker(self.facts(name, entry, "http"), Peer(entry.url or "", headers))

    def headers(self, name: str, entry: ReplicaEntry) -> dict[str, str]:
        """Return the headers with the replica's key. Raises FleetError for a variable that is not set."""
        if entry.key is None:
            return {}
        key = self.secret(entry.key)
        if not key or not key.isascii() or not key.isprintable():
            text = f"key names the environment variable {entry.key}, which is not set; set it to the key of {name}."
            raise self.fail(("replicas", name, "key"), text)
        return {"Authorization": f"Bearer {key}"}

    def facts(self, name: str, entry: ReplicaEntry, kind: Kind) -> ReplicaState:
        """Return what the operator says of a replica."""
        tier = self.registry.tiers.get(entry.tier) if entry.tier else None
        if entry.tier and tier is None:
            tiers = ", ".join(self.registry.tiers) or "none"
            text = f"tier {entry.tier} is not defined in models.yaml; the tiers there are {tiers}."
            raise self.fail(("replicas", name, "tier"), text)
        vram_gb = entry.vram_gb or (tier.vram_gb if tier else None)
        return ReplicaState(
            name=name,
            kind=kind,
            tier=entry.tier,
            vram_bytes=None if vram_gb is None else round(vram_gb * _GIB),
            serves=self.served(name, entry.models) if entry.models else None,
            volume=entry.volume,
            resident_slots=entry.resident_models,
            can_grow=kind != "http",
            workers=1 if kind == "http" else 0,
            warm=kind == "http",
            cold_start_s=entry.cold_start_s,
            usd_per_second=entry.usd_per_hour / 3600,
            speed=entry.speed,
        )

    def served(self, name: str, models: Collection[str]) -> frozenset[str]:
        """Return the ids of the models that a replica serves. Raises FleetError for one that models.yaml lacks."""
        ids = set()
        for index, model in enumerate(models):
            spec = self.registry.find(model)
            if spec is None:
                nearest = self.registry.nearest(model)
                fix = f"did you mean {nearest[0]}?" if nearest else "add it there."
                raise self.fail(("replicas", name, "models", index), f"{model[:64]} is not in models.yaml; {fix}")
            ids.add(spec.id)
        return frozenset(ids)
