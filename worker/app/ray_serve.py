"""The worker on Ray Serve: a gateway that callers reach, and behind it a deployment for each replica of a tier.

A deployment has one replica at most, and none while nothing comes. Serve would choose among several by their queues
alone, and not by the models that they hold; here the gateway chooses, by worker/remote/placement.py.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import JsonValue
from ray import serve

from worker.app.called import CalledWorker
from worker.app.gateway import build_gateway
from worker.app.logs import configure_logging
from worker.app.registry import build_registry
from worker.app.server import build_app
from worker.app.settings import Settings, handed_on, read_settings
from worker.core.model import Tier
from worker.remote.members import Member
from worker.remote.platforms.ray_deployment import RayDeployment
from worker.remote.replica import ReplicaState
from worker.service.limits.pools import Pool
from worker.transport.called import Update

APPLICATION = "diffusers"
GATEWAY = "Gateway"
_GIB = 2**30
# Serve counts a replica's jobs every so often, and starts a replica for the first.
_METRICS_S = 1.0
_LOOK_S = 10.0
_LOOKS = 8  # at once, in threads of their own: Serve's status is asked for in a blocking call
_STORE_BYTES = 500_000_000  # of this machine's memory, for answers on their way


def run(settings: Settings, address: str | None) -> None:
    """Deploy to the cluster at `address`, or to one of this machine alone, and serve until this is interrupted.

    Raises SettingsError, FileError.
    """
    tiers = build_registry(settings).tiers
    if address is None:
        here = {tier: limits.max_containers for tier, limits in tiers.items()}
        ray.init(include_dashboard=False, resources=here, object_store_memory=_STORE_BYTES)
    else:
        ray.init(address=address)
    gpus = 1 if settings.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    serve.start(http_options={"host": settings.api_host, "port": settings.port or settings.api_port})
    serve.run(build_application(settings, gpus), name=APPLICATION, route_prefix="/", blocking=True)


class Replica:
    """One worker, in the process that Serve starts for it."""

    def __init__(self) -> None:
        self._worker: CalledWorker | None = None

    async def stream(self, job: Mapping[str, Any]) -> AsyncGenerator[Update, None]:
        """Answer one job, as worker/transport/called.py does."""
        updates = self._begun().stream(job)
        try:
            async for update in updates:
                yield update
        finally:
            await updates.aclose()

    def check_health(self) -> None:
        """Tell Serve whether another process should take this one's place."""
        if self._worker is not None and self._worker.lost:
            raise RuntimeError("the engine does not answer any more")

    async def __del__(self) -> None:
        """Give the jobs their time."""
        if self._worker is not None:
            await self._worker.end()

    def _begun(self) -> CalledWorker:
        if self._worker is None:
            self._worker = CalledWorker(read_settings())
            self._worker.begin()
        return self._worker


def build_ingress() -> FastAPI:
    """Build the gateway's HTTP doors, in the process that Serve starts for them."""
    settings = read_settings()
    configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
    looks = Pool("looks", _LOOKS)
    members = [
        Member(
            RayDeployment(_facts(name, tier, limits), _Calls(name), partial(_look, looks, name)), settings.jobs_taken
        )
        for name, (tier, limits) in replicas(settings).items()
    ]
    return build_app(build_gateway(settings, members))


def build_application(settings: Settings, gpus: int = 1) -> serve.Application:
    """Return the application: `serve.run` deploys it. A replica has `gpus`. Raises SettingsError, FileError."""
    deployments = [
        serve.deployment(Replica).options(name=name, **_scaling(tier, limits, settings, gpus)).bind()
        for name, (tier, limits) in replicas(settings).items()
    ]
    ingress = serve.deployment(serve.ingress(build_ingress)(_Gateway)).options(
        name=GATEWAY,
        num_replicas=1,  # it keeps jobs and answers in its memory
        max_ongoing_requests=settings.max_connections,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": handed_on(door=True)}},
    )
    return ingress.bind(deployments)


def replicas(settings: Settings) -> Mapping[str, tuple[str, Tier]]:
    """Return the replicas that there may be, by the names of their deployments, with their tiers."""
    tiers = build_registry(settings).tiers
    return {
        f"{tier}-{number}": (tier, limits)
        for tier, limits in tiers.items()
        for number in range(1, limits.max_containers + 1)
    }


class _Gateway:
    """The ingress. It is bound to the deployments behind it, so that they are deployed with it."""

    def __init__(self, deployments: list[Any]) -> None:
        self._deployments = deployments


class _Calls:
    """A deployment, called; its handle is made with the first job, on the loop that uses it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream: Any = None

    def __call__(self, job: dict[str, JsonValue]) -> Any:
        if self._stream is None:
            self._stream = serve.get_deployment_handle(self._name, APPLICATION).options(stream=True).stream
        return self._stream.remote(job)


async def _look(looks: Pool, name: str) -> int:
    """Return how many replicas of a deployment run."""
    async with asyncio.timeout(_LOOK_S):
        status = await looks.run(serve.status)
    application = status.applications.get(APPLICATION)
    deployment = application.deployments.get(name) if application else None
    return deployment.replica_states.get("RUNNING", 0) if deployment else 0


def _facts(name: str, tier: str, limits: Tier) -> ReplicaState:
    return ReplicaState(
        name=name,
        kind="ray",
        tier=tier,
        vram_bytes=limits.vram_gb * _GIB,
        warm=False,
        cold_start_s=30.0,  # until one was measured
    )


def _scaling(tier: str, limits: Tier, settings: Settings, gpus: int) -> dict[str, Any]:
    """Return how a replica is scaled and placed. Its tier is a resource of the cluster's nodes."""
    return {
        "max_ongoing_requests": 2 * settings.jobs_taken,
        "autoscaling_config": {
            "min_replicas": 0,
            "max_replicas": 1,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": limits.scaledown_s,
            "metrics_interval_s": _METRICS_S,
            "look_back_period_s": 2 * _METRICS_S,
        },
        "graceful_shutdown_timeout_s": settings.shutdown_grace_seconds,
        "health_check_period_s": 5,
        "ray_actor_options": {
            "num_cpus": 0,
            "num_gpus": gpus,
            "resources": {tier: 1},
            "runtime_env": {"env_vars": handed_on(door=False)},
        },
    }
