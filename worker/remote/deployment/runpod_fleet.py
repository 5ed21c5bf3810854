"""A fleet on RunPod: one template, and for each tier and data centre an endpoint and its network volume.

What exists under a name is changed only where it differs from the order. Variables that were added in the console stay,
and nothing is ever deleted: endpoints whose tier is gone are named, for the operator to judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.core.model import Tier
from worker.remote.deployment.runpod_api import DeploymentError, Json, ResourceKind, RunPodApi

# Gigabytes of one device's memory -> the pools that have them.
POOLS: Mapping[int, tuple[str, ...]] = {
    16: ("AMPERE_16",),
    24: ("AMPERE_24", "ADA_24"),
    32: ("ADA_32_PRO",),
    48: ("AMPERE_48", "ADA_48_PRO"),
    80: ("AMPERE_80", "ADA_80_PRO"),
    96: ("BLACKWELL_96",),
    141: ("HOPPER_141",),
    180: ("BLACKWELL_180",),
}
# The image's torch: see docs/deploy.md.
CUDA_VERSIONS = ("13.0",)
# Beyond the time limit of a job, so that the worker can say why it took so long.
_SLACK_S = 60
_DISK_GB, _DISK_BESIDE_VOLUME_GB = 100, 20
_LB_PORT = "8000"
# RunPod shows FlashBoot in an endpoint's name.
_FLASHBOOT_MARK = " -fb"
Action = Literal["create", "update", "keep", "leave"]


@dataclass(frozen=True, slots=True)
class FleetOrder:
    """What the operator wants. `name` begins every resource's name; `env` is for every worker."""

    name: str
    image: str
    tiers: Mapping[str, Tier]
    data_centers: tuple[str, ...] = ()
    volume_gb: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    min_workers: int = 0
    load_balancing: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource as it is ordered. `body` creates it; `container` is what an endpoint has from its template.

    Other resources stand in both by their names.
    """

    kind: ResourceKind
    name: str
    body: Json
    container: Json = field(default_factory=dict)
    tier: str | None = None  # of an endpoint


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a deployment. `fields` are the names of what is sent; their values may be secret."""

    action: Action
    kind: ResourceKind
    name: str
    fields: tuple[str, ...] = ()
    id: str | None = None


class RunPodFleet:
    """An order beside what the account has."""

    def __init__(self, api: RunPodApi, order: FleetOrder) -> None:
        self._api = api
        self._order = order
        self._ids: dict[str, str] = {}

    def plan(self) -> list[Step]:
        """Return the steps from what is there to what is ordered. Raises DeploymentError; changes nothing."""
        return [step for step, _, _ in self._walk()]

    def deploy(self) -> Iterator[Step]:
        """Take the steps, and yield each when it is done. Everything that can be refused here is refused before."""
        for step, resource, changes in list(self._walk()):
            if step.action == "create":
                made = self._api.create(step.kind, self._resolved(resource.body))
                self._ids[step.name] = str(made["id"])
            elif step.action == "update":
                # What an earlier step has made has its id by now.
                self._api.update(step.kind, step.id or "", self._resolved(changes))
            yield Step(step.action, step.kind, step.name, step.fields, self._ids.get(step.name, step.id))

    def _walk(self) -> Iterator[tuple[Step, Resource, Json]]:
        wanted = list(resources(self._order))
        kinds: tuple[ResourceKind, ...] = ("network volume", "template", "endpoint")
        present = {kind: self._api.every(kind) for kind in kinds}
        for resource in wanted:
            there = _only(resource, present[resource.kind])
            if there is None:
                yield Step("create", resource.kind, resource.name, tuple(sorted(resource.body))), resource, {}
                continue
            self._ids[resource.name] = str(there["id"])
            changes = differences(resource, there, self._resolved)
            action: Action = "update" if changes else "keep"
            step = Step(action, resource.kind, resource.name, _names(changes), str(there["id"]))
            yield step, resource, changes
        names = {resource.name for resource in wanted if resource.kind == "endpoint"}
        for there in present["endpoint"]:
            title = str(there.get("name", "")).removesuffix(_FLASHBOOT_MARK)
            if title.startswith(f"{self._order.name}-") and title not in names:
                yield Step("leave", "endpoint", title, id=str(there["id"])), Resource("endpoint", title, {}), {}

    def _resolved(self, body: Json) -> Json:
        """Return `body` with ids in the place of the names of resources, as far as they are known."""
        resolved = dict(body)
        if "templateId" in body:
            resolved["templateId"] = self._ids.get(body["templateId"], body["templateId"])
        if "networkVolumes" in body:
            resolved["networkVolumes"] = [self._ids.get(name, name) for name in body["networkVolumes"]]
        return resolved


def resources(order: FleetOrder) -> Iterator[Resource]:
    """Yield what is ordered, what others need first. Raises DeploymentError for a tier that no pool has."""
    if order.volume_gb is not None and not order.data_centers:
        raise DeploymentError("A network volume lies in one data centre; name it with --data-center.")
    for data_center in order.data_centers if order.volume_gb is not None else ():
        volume = _volume(order, data_center)
        yield Resource("network volume", volume, {"name": volume, "size": order.volume_gb, "dataCenter": data_center})
    container = _container(order)
    yield Resource(
        "template",
        order.name,
        {
            "name": order.name,
            **container,
            "serverless": True,
            "startSsh": False,
            "startJupyter": False,
            "allowedCudaVersions": [*CUDA_VERSIONS],
        },
    )
    for tier_name, tier in order.tiers.items():
        for place in order.data_centers or (None,):
            yield _endpoint(order, tier_name, tier, place, container)


def _container(order: FleetOrder) -> Json:
    env = {"RUNPOD_INIT_TIMEOUT": "800"}
    if order.load_balancing:
        env |= {"STANDALONE_MODE": "1", "PORT": _LB_PORT, "PORT_HEALTH": _LB_PORT}
    container: Json = {
        "image": order.image,
        "disk": _DISK_GB if order.volume_gb is None else _DISK_BESIDE_VOLUME_GB,
        "env": env | dict(order.env),
    }
    return container | ({"ports": [f"{_LB_PORT}/http"]} if order.load_balancing else {})


def _endpoint(order: FleetOrder, tier_name: str, tier: Tier, data_center: str | None, container: Json) -> Resource:
    name = "-".join(filter(None, (order.name, tier_name.lower(), data_center and data_center.lower())))
    body: Json = {
        "name": name,
        "type": "LOAD_BALANCER" if order.load_balancing else "QUEUE",
        "templateId": order.name,
        "gpu": {"pools": [*pools_of(tier_name, tier)], "count": 1, "allowedCudaVersions": [*CUDA_VERSIONS]},
        "workers": {
            "min": min(order.min_workers, tier.max_containers),
            "max": tier.max_containers,
            "idleTimeout": tier.scaledown_s,
        },
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 2}
        if order.load_balancing
        else {"type": "QUEUE_DELAY", "queueDelay": 4},
        "flashboot": "FLASHBOOT",
        "timeout": (tier.timeout_s + _SLACK_S) * 1000,
    }
    if data_center is not None:
        body["dataCenterIds"] = [data_center]
        if order.volume_gb is not None:
            body["networkVolumes"] = [_volume(order, data_center)]
    return Resource("endpoint", name, body, container, tier_name)


def pools_of(name: str, tier: Tier) -> tuple[str, ...]:
    """Return the pools of a tier: those that it names, or else all with the least memory that suffices."""
    if tier.runpod_pools:
        return tier.runpod_pools
    size = min((size for size in POOLS if size >= tier.vram_gb), default=None)
    if size is None:
        raise DeploymentError(
            f"Tier {name} asks for {tier.vram_gb} GB and RunPod's largest pool has {max(POOLS)}; lower its vram_gb in "
            "models.yaml, or name runpod_pools there."
        )
    return POOLS[size]


def _volume(order: FleetOrder, data_center: str) -> str:
    return f"{order.name}-{data_center.lower()}"


def _only(resource: Resource, present: Sequence[Json]) -> Json | None:
    """Return the one that has this name already, or None."""
    names = (resource.name, resource.name + _FLASHBOOT_MARK)
    hits = [item for item in present if item.get("name") in names]
    if len(hits) > 1:
        ids = " and ".join(str(item.get("id")) for item in hits)
        raise DeploymentError(
            f"The account has {len(hits)} {resource.kind}s that are named {resource.name} ({ids}); rename all but one."
        )
    return hits[0] if hits else None


def fleet_entries(order: FleetOrder, steps: Sequence[Step]) -> dict[str, Json]:
    """Return the ordered endpoints as the replicas of a gateway's fleet.yaml, by name, as far as they have an id."""
    ids = {step.name: step.id for step in steps if step.kind == "endpoint"}
    kind = "runpod_load_balancer" if order.load_balancing else "runpod"
    entries: dict[str, Json] = {}
    for resource in resources(order):
        if resource.kind == "endpoint" and ids.get(resource.name) is not None:
            entry: Json = {kind: ids[resource.name], "key": "RUNPOD_API_KEY", "tier": resource.tier}
            volumes = resource.body.get("networkVolumes")
            entries[resource.name] = entry | ({"volume": volumes[0]} if volumes else {})
    return entries


# What RunPod cannot change, and what the operator can do instead.
_FIXED: Mapping[str, str] = {
    "type": "delete the endpoint, or deploy under another --name",
    "dataCenter": "name the volume's own data centre, or deploy under another --name",
}


def differences(resource: Resource, there: Json, resolve: Any) -> Json:
    """Return the fields in which `there` differs from the order, as they are to be sent. Raises DeploymentError."""
    wanted = {**resource.body, **resource.container}
    # An endpoint was made of its template once and does not follow it: its container is compared instead.
    wanted = {name: value for name, value in wanted.items() if name not in ("name", "templateId")}
    changes: Json = {}
    for name, value in resolve(wanted).items():
        old = there.get(name)
        if name in _FIXED and old is not None and old != value:
            text = f"{resource.name} has {name} {old} and the order says {value}, which RunPod cannot change"
            raise DeploymentError(f"{text}; {_FIXED[name]}.")
        if name == "size" and old is not None and old > value:
            raise DeploymentError(
                f"Network volume {resource.name} has {old} GB and cannot shrink to {value}; say --volume-gb {old}."
            )
        changed = _with(value, old or {}) if name == "env" else _changed(value, old)
        if changed is not None:
            changes[name] = wanted[name] if name == "networkVolumes" else changed
    return changes


def _changed(value: Any, old: Any) -> Any:
    """Return what is to be sent so that `old` becomes `value`; None where nothing is."""
    if isinstance(value, list):
        return None if sorted(value) == sorted(old or []) else value
    if not isinstance(value, dict) or not isinstance(old, dict) or "type" in value:  # a choice of kinds is sent whole
        return None if value == old else value
    parts = {name: _changed(part, old.get(name)) for name, part in value.items()}
    return {name: part for name, part in parts.items() if part is not None} or None


def _with(variables: Json, there: Json) -> Json | None:
    """Return the environment with these variables, to be sent; None where it has them."""
    both = {**there, **variables}
    return None if both == there else both


def _names(changes: Json) -> tuple[str, ...]:
    """Return the names of the fields in `changes`, with a dot for those inside. Values stay out: some are secret."""
    names = []
    for name, value in changes.items():
        inner = isinstance(value, dict) and name in ("gpu", "workers")
        names += [f"{name}.{part}" for part in value] if inner else [name]
    return tuple(names)
