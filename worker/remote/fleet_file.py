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


def read_fleet(
    path: Path, registry: Registry, secret: Callable[[str], str | None], spending: Path
) -> tuple[Member, ...]:
    """Read and check a fleet.yaml. Raises FleetError.

    `secret` returns the value of an environment variable. What providers are paid is written into the file `spending`.
    """
    return _Reading(path, registry, secret, spending).members()


class _Reading(OperatorFile):
    """One reading of one fleet.yaml."""

    error = FleetError
    keys = "replicas"
    nested = MappingProxyType({"replicas": ReplicaEntry})

    def __init__(self, path: Path, registry: Registry, secret: Callable[[str], str | None], spending: Path) -> None:
        super().__init__(path)
        self.registry = registry
        self.secret = secret
        self.spending = spending

    def members(self) -> tuple[Member, ...]:
        """Return the members, in the order of the file."""
        file = self.parsed(FleetFile, self.data(), ())
        return tuple(Member(self.platform(name, entry), entry.concurrency) for name, entry in file.replicas.items())

    def platform(self, name: str, entry: ReplicaEntry) -> Platform:
        """Return the replica that an entry describes."""
        if entry.provider is not None:
            return self.provider(name, entry, entry.provider)
        headers = self.headers(name, entry)
        if entry.runpod is not None:
            peer = Peer(f"{entry.url or QUEUE_URL}/{entry.runpod}", headers)
            return RunPodEndpoint(self.facts(name, entry, "runpod"), peer, entry.attempt_s)
        if entry.runpod_load_balancer is not None:
            peer = Peer(BALANCER_URL.format(entry.runpod_load_balancer), headers)
            return HttpWorker(self.facts(name, entry, "runpod-lb"), peer)
        return HttpWorker(self.facts(name, entry, "http"), Peer(entry.url or "", headers))

    def provider(self, name: str, entry: ReplicaEntry, provider: str) -> Platform:
        """Return the hosted provider that an entry describes."""
        place = ("replicas", name)
        try:
            from worker.remote.platforms.hosted_provider import open_provider  # what only such a fleet needs
        except ModuleNotFoundError as error:
            text = f"provider {provider} needs {error.name}, which is not installed here; pip install ./image_client."
            raise self.fail((*place, "provider"), text) from None
        models = {self.known(name, ("provider_models", id), id): model for id, model in entry.provider_models.items()}
        key = self.key(name, entry)
        if key is None and provider != "mock":
            text = f"key is missing; name the environment variable that holds this gateway's token for {provider}."
            raise self.fail(place, text)
        facts = ReplicaState(
            name=name,
            kind="hosted",
            serves=frozenset(models),
            workers=entry.concurrency,
            usd_per_image=entry.usd_per_image,
            usd_per_megapixel=entry.usd_per_megapixel,
            max_usd_per_image=entry.max_usd_per_image or 0.0,
        )
        try:
            return open_provider(facts, models, entry, self.spending, key)
        except ValueError as error:
            raise self.fail((*place, "provider_models"), str(error)) from None

    def key(self, name: str, entry: ReplicaEntry) -> str | None:
        """Return the replica's key; None where none is named. Raises FleetError for a variable that is not set."""
        if entry.key is None:
            return None
        key = self.secret(entry.key)
        if not key or not key.isascii() or not key.isprintable():
            text = f"key names the environment variable {entry.key}, which is not set; set it to the key of {name}."
            raise self.fail(("replicas", name, "key"), text)
        return key

    def headers(self, name: str, entry: ReplicaEntry) -> dict[str, str]:
        """Return the headers with the replica's key."""
        key = self.key(name, entry)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

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
        """Return the ids of the models that a replica serves."""
        return frozenset(self.known(name, ("models", index), model) for index, model in enumerate(models))

    def known(self, name: str, place: tuple[str | int, ...], model: str) -> str:
        """Return the id of a model that an entry names. Raises FleetError for one that models.yaml lacks."""
        spec = self.registry.find(model)
        if spec is None:
            nearest = self.registry.nearest(model)
            fix = f"did you mean {nearest[0]}?" if nearest else "add it there."
            raise self.fail(("replicas", name, *place), f"{model[:64]} is not in models.yaml; {fix}")
        return spec.id
