"""The composition of a gateway: settings in, the same doors before other workers out. No torch, no device."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from worker.app.registry import build_matrix
from worker.app.served import Groundwork, Served, admission_limits
from worker.app.settings import Settings, SettingsError, secret_named
from worker.app.stores import build_pairs
from worker.app.versions import VersionParts
from worker.catalog.registry import Registry
from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.core.turn import current
from worker.engine.plan import memory_ways
from worker.remote.asking import Asker
from worker.remote.backend import RemoteBackend
from worker.remote.fleet import Fleet
from worker.remote.fleet_file import FleetError, read_fleet
from worker.remote.members import Member, Members
from worker.remote.needs import NeedsReader
from worker.remote.platforms.http_worker import HttpWorker
from worker.service.accepting.judging import Judge
from worker.service.alerts.measures import Readings
from worker.service.discovery.fleet_golden import FleetComparer
from worker.service.generation import GenerationService
from worker.service.introspection.fleet import FleetIntrospection
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.limits.admission import Admission, Load
from worker.service.local.provisioning import Provisioner
from worker.service.operations import Operations
from worker.service.usage.privacy import keep_always
from worker.service.usage.telemetry import MeteredBackend

_LOG = logging.getLogger("worker")
# What a gateway adds to an answer that just fitted where it was made.
_BESIDE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway(Served):
    """A built gateway, with the replicas behind it."""

    members: Members

    @property
    def fleet(self) -> Fleet:
        """The workers behind this gateway."""
        workers = [each.platform for each in self.members.all.values() if isinstance(each.platform, HttpWorker)]
        # Behind a load balancer it is any of several that answers.
        return Fleet(self.members, {each.name: each for each in workers if each.state().kind == "http"})

    async def until_lost(self) -> None:
        """Wait for ever: a gateway has nothing that can be lost."""
        await asyncio.Event().wait()

    async def warm_up(self, warm: Callable[[], None] = lambda: None) -> None:
        """Look at every replica, and from then on again and again."""
        await self.members.observe()
        warm()
        for state in self.members.states():
            if state.health == "resting":
                _LOG.warning("not ready, %s does not answer", state.name)
        await self.members.watch()

    async def let_go(self) -> None:
        """Close the connections to the replicas."""
        await self.members.close()


class PlacedBackend:
    """A backend whose jobs hold a place of `admission` from their acceptance to their answer."""

    def __init__(self, backend: RemoteBackend, admission: Admission, needs: NeedsReader) -> None:
        self._backend = backend
        self._admission = admission
        self._needs = needs

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Have `job` generated, once it is known how large its files are."""
        if job.choice is None and job.request.sticky is None:  # its worker may have a split of its own
            job = replace(job, request=job.request.model_copy(update={"sticky": _one_of_many(job)}))
        async with self._admission.place(job.stop):
            await self._needs.learn(job)
            return await self._backend.generate(job, emit)


def build_gateway(settings: Settings, beside: Sequence[Member] = ()) -> Gateway:
    """Build a gateway. Nothing is asked of any replica yet. Raises SettingsError, FileError.

    `beside` are the replicas of the platform that the gateway itself runs on, before those of FLEET_FILE.
    """
    ground = Groundwork.of(settings, generates=False)
    resolver, pools = ground.resolver, ground.pools
    members = Members([*beside, *_fleet(settings, resolver.registry)])
    if not members.all:
        raise SettingsError("FLEET_FILE is not set, and a gateway needs to know its workers; name a fleet.yaml.")
    admission = Admission(admission_limits(settings))
    needs = NeedsReader(partial(pools.headers.run, ground.store.peek), resolver.part_source, memory_ways)
    backend = MeteredBackend(PlacedBackend(RemoteBackend(members, needs), admission, needs))
    judge = Judge(build_matrix(settings), resolver)
    generation = GenerationService(ground.acceptor, backend, admission, ground.quotas, judge)

    def load() -> Load:
        return Load(running=admission.running, queued=admission.queued)

    asker = Asker(members, needs)
    device = FleetIntrospection(resolver, ground.store, asker, load, pools.headers, judge)
    delivery = Delivery(int(settings.max_response_mb * 1e6) + _BESIDE, is_done_elsewhere=True)
    metrics = ground.metrics(load)
    alerts = ground.alerts(lambda: Readings(load().queued, _resting(members)))
    pairs, provisioner = build_pairs(settings, ground.usage_log.worker), Provisioner(ground.store, resolver)
    versions = VersionParts.of(settings, ground.store, resolver, provisioner, pairs, members.volumes)
    operations = Operations(
        generation,
        ground.recipes(generation, device),
        ground.introspection,
        device,
        Readiness(device, ()),
        delivery,
        ground.telemetry(metrics, alerts, versions.halting),
        versions.actions,
        pools,
        ground.discovery(device),
        settings.timeout_seconds,
        alerts=alerts,
        comparer=FleetComparer(generation, asker, pools.headers),
    )
    return Gateway(
        settings=settings,
        resolver=resolver,
        operations=operations,
        metrics=metrics,
        usage_log=ground.usage_log,
        quotas=ground.quotas,
        versions=versions,
        members=members,
    )


def _one_of_many(job: Job) -> str:
    """Return who asks, as a worker may know it: all of a gateway's callers would else be one to it, its own key.

    A job of nobody's is one of its own, and the same when it is tried once more: its worker knows it by its id.
    """
    who = current().caller or job.id
    return hashlib.sha256(who.encode("utf-8", "replace")).hexdigest()[:32]


def _resting(members: Members) -> int:
    """Return how many replicas do not answer."""
    return sum(state.health == "resting" for state in members.states())


def _fleet(settings: Settings, registry: Registry) -> Sequence[Member]:
    if settings.fleet_file is None:
        return ()
    try:
        spending = settings.volume / "state" / "spending.sqlite"
        return read_fleet(settings.fleet_file, registry, _secret, spending)
    except FleetError as error:
        raise SettingsError(f"FLEET_FILE: {error}") from None


def _secret(variable: str) -> str | None:
    """Return the value of an environment variable that holds a key, which no log line will show from now on."""
    value = secret_named(variable)
    if value:
        keep_always([value])
    return value
