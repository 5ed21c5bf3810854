"""What the HTTP server needs of whatever it serves: a worker with a device, or a gateway before several of them."""

import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from worker import __version__
from worker.app.alerting import build_alerts, read_alerts
from worker.app.memory import tidy
from worker.app.place import Place
from worker.app.registry import build_matrix, build_registry
from worker.app.settings import Settings, SettingsError
from worker.app.stores import build_adapter_folders, build_search, build_store, build_versions
from worker.app.versions import VersionParts
from worker.catalog.operator_file import FileError
from worker.catalog.recipes.recipe import Recipe
from worker.catalog.registry import Registry
from worker.core import moments
from worker.core.answer import Pace
from worker.core.quality import LeverReport
from worker.core.turn import StopSignal
from worker.net.fetch import ImageFetcher
from worker.net.fetched import FetchedBytes
from worker.remote.fleet import Fleet
from worker.service.accepting.acceptance import Acceptor
from worker.service.accepting.links import MAX_BYTES
from worker.service.accepting.resolving import ModelResolver, OwnFiles, Policy
from worker.service.alerts.measures import Readings
from worker.service.alerts.watch import Alerts
from worker.service.discovery.finder import Finder, Permit
from worker.service.discovery.looking import Looker
from worker.service.discovery.memory import Memory
from worker.service.discovery.updates import UpdateSeeker
from worker.service.generation import GenerationService
from worker.service.introspection.answers import DeviceAnswers
from worker.service.introspection.models import ModelIntrospection
from worker.service.limits.accounts import Accounts
from worker.service.limits.admission import AdmissionLimits, Load
from worker.service.limits.job_limits import JobLimits
from worker.service.limits.pools import Pools
from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.service.local.volume import Volume
from worker.service.operations import Operations
from worker.service.recipes.answers import Recipes
from worker.service.recipes.checking import check_recipes
from worker.service.recipes.making import Making
from worker.service.usage.log import UsageLog
from worker.service.usage.metrics import Metrics
from worker.service.usage.telemetry import Observer, Telemetry
from worker.store.free_space import DiskGauge
from worker.store.refs import parse_reference
from worker.store.store import Store
from worker.store.tuned import TunedModels
from worker.wire.request import ALIASES

_LOG = logging.getLogger("worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Everything that a door needs."""

    settings: Settings
    resolver: ModelResolver
    operations: Operations
    metrics: Metrics
    usage_log: UsageLog
    quotas: Quotas
    versions: VersionParts

    @property
    def registry(self) -> Registry:
        """The models that are served."""
        return self.resolver.registry

    @property
    def is_lost(self) -> bool:
        """True once this process must be replaced."""
        return False

    @property
    def volume(self) -> Volume | None:
        """The models on the volume; None where only others generate."""
        return None

    @property
    def fleet(self) -> Fleet | None:
        """The workers behind a gateway; None of a worker."""
        return None

    def reload(self) -> None:
        """Read models.yaml and compatibility.yaml again; a mistake in one changes nothing, and the log names it."""
        try:
            registry, matrix = build_registry(self.settings), build_matrix(self.settings)
        except (FileError, SettingsError) as error:
            _LOG.error("models.yaml is not reloaded: %s", error)
            return
        earlier = self.resolver.registry
        self.resolver.replace_registry(registry)
        try:
            check_recipes(registry.recipes.values(), self.operations.generation.acceptor)
        except FileError as error:
            self.resolver.replace_registry(earlier)
            _LOG.error("models.yaml is not reloaded: %s", error)
            return
        self.operations.generation.judge.replace_matrix(matrix)
        self.versions.follow(registry)
        self.operations.readiness.wake()
        _LOG.info("models.yaml is reloaded: %d models", len(registry.models))
        self._reload_alerts()

    def _reload_alerts(self) -> None:
        try:
            file = read_alerts(self.settings, self.resolver.registered_id)
        except SettingsError as error:
            _LOG.error("the alerts are not reloaded: %s", error)
            return
        if file is not None:
            self.operations.alerts.replace(file)
            _LOG.info("the alerts are reloaded: %d rules", len(file.rules))

    async def watch_alerts(self) -> None:
        """Look at the operator's alerts again and again. This runs until it is cancelled.

        What was spent before counts too, as far as this worker's lines of the usage log have it.
        """
        if self.settings.alerts is None:
            return
        since = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        lines = await self.operations.pools.own.run(self.usage_log.own, since)
        self.operations.alerts.remember(lines)
        await self.operations.alerts.watch()

    def tend_volume(self) -> None:
        """Begin what is done for the files of the volume, in a thread that ends with the process."""

    def close(self) -> None:
        """Write down what is counted and traced. Blocking."""
        self.operations.telemetry.close()
        self.quotas.close()

    async def let_go(self) -> None:
        """Let go of what belongs to the event loop, once no job is under way any more."""

    async def tidy(self) -> None:
        """Keep the process's memory small. This runs until it is cancelled."""
        moments.note("jobs are taken")  # the loop is up
        admission = self.operations.generation.admission
        await tidy(lambda: admission.taken, lambda: admission.running + admission.queued, self.operations.pools.own)

    async def until_lost(self) -> None:
        """Return once this process must be replaced."""
        raise NotImplementedError

    async def warm_up(self, warm: Callable[[], None] = lambda: None) -> None:
        """Make ready; `warm` is called once jobs can be taken. This runs until it is cancelled."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Groundwork:
    """What knows models and checks requests: the same for whoever generates."""

    settings: Settings
    store: Store
    resolver: ModelResolver
    pools: Pools
    introspection: ModelIntrospection
    acceptor: Acceptor
    quotas: Quotas
    usage_log: UsageLog

    @classmethod
    def of(cls, settings: Settings, place: Place | None = None, *, generates: bool = True) -> "Groundwork":
        """Build it. `place` is that of a process among several. Raises SettingsError, FileError.

        `generates` is False where jobs are sent on, with their images as they came.
        """
        registry, store, pools = build_registry(settings), build_store(settings), Pools()
        folders = build_adapter_folders(settings)
        policy = Policy(
            default_model=settings.default_model_id,
            allow_unregistered=settings.allow_unregistered_models,
            allowed_orgs=settings.allowed_orgs,
            denied_orgs=settings.denied_orgs,
            allowed_hosts=settings.allowed_hosts,
            denied_hosts=settings.denied_hosts,
            precision=settings.precision_mode,
        )
        resolver = ModelResolver(
            registry,
            policy,
            parse_reference,
            lambda source, variant: store.look(source, variant, StopSignal(settings.timeout_seconds)),
            build_versions(settings),
            OwnFiles(folders.find, TunedModels(settings.volume).find),
        )
        limits = JobLimits(
            settings.max_images,
            settings.max_loras,
            settings.timeout_seconds,
            settings.default_quality,
            settings.allow_precision,
        )
        # As much as the jobs themselves may take, and in any case what one request may bring.
        books = FetchedBytes(int(settings.max_queued_mb * 2**20), least=MAX_BYTES)
        fetch = ImageFetcher(allow_private=settings.allow_private_urls, books=books)
        name = socket.gethostname()
        accounts = Accounts(settings.volume / "state" / f"quotas-{name}.json", place.shared_accounts if place else None)
        acceptor = Acceptor(
            resolver, limits, pools, fetch, aliases=ALIASES, find_file=folders.find, generates=generates
        )
        check_recipes(registry.recipes.values(), acceptor)
        return cls(
            settings,
            store,
            resolver,
            pools,
            ModelIntrospection(resolver, store, limits, pools.headers, folders),
            acceptor,
            Quotas(QuotaLimits(settings.rate_limit_per_minute, settings.quota_pixel_steps_per_day), accounts),
            UsageLog(settings.usage_dir, f"{name}-{place.number}" if place else name, passes_on=not generates),
        )

    def discovery(self, device: DeviceAnswers, pace_of: Callable[[str], Pace | None] = lambda model: None) -> Finder:
        """Return what looks for models that others publish, and plans them for `device`."""
        settings = self.settings

        def uses() -> Counter[str]:
            return self.usage_log.uses((datetime.now(UTC) - timedelta(days=30)).date().isoformat())

        sources, headers = build_search(settings), self.pools.headers
        access = sources.hub.check_access
        looker = Looker(self.resolver, self.store.peek, access, parse_reference, device, headers, pace_of)
        return Finder(
            sources,
            looker,
            UpdateSeeker(self.store, looker, headers),
            self.pools,
            Memory(settings.volume / "state" / "discovery"),
            uses,
            Permit(settings.discovery, settings.discovery_keys, settings.offline),
        )

    def recipes(
        self,
        generation: GenerationService,
        device: DeviceAnswers,
        pace_of: Callable[[str], Pace | None] = lambda model: None,
    ) -> Recipes:
        """Return the recipes, as the registry has them at any moment, made by `generation` and planned for `device`."""

        def find(name: str | None) -> Recipe | None:
            return self.resolver.registry.recipe(name)

        return Recipes(find, Making(generation, self.pools), device, pace_of)

    def metrics(self, load: Callable[[], Load], levers: Callable[[], Sequence[LeverReport]] = tuple) -> Metrics:
        """Return what counts, over `load`, what was decided of `levers`, and the volume's room."""
        return Metrics(__version__, load, self.pools.all, levers, DiskGauge(self.settings.volume).space)

    def alerts(self, now: Callable[[], Readings]) -> Alerts:
        """Return the watch over the operator's alerts; `now` reads what only the composition knows.

        Raises SettingsError.
        """
        return build_alerts(self.settings, self.resolver.registered_id, self.pools, now, self.usage_log.worker)

    def telemetry(self, metrics: Metrics, *others: Observer) -> Telemetry:
        """Return the one bracket around all that is asked."""
        observers: list[Observer] = [metrics, self.usage_log, *others, *_tracing(self.settings)]
        return Telemetry(self.resolver.registered_id, observers)


def admission_limits(settings: Settings) -> AdmissionLimits:
    """Return how many jobs are taken, and how large."""
    return AdmissionLimits(settings.max_concurrent_jobs, settings.max_queued_jobs, settings.max_pixel_steps)


def _tracing(settings: Settings) -> list[Observer]:
    """Return the traces' observer, if traces have a destination; else not even their library is imported."""
    if settings.otel_exporter_otlp_endpoint is None:
        return []
    from worker.service.usage.tracing import Tracing, otlp

    return [Tracing(__version__, otlp(settings.otel_exporter_otlp_endpoint, settings.otel_headers))]
