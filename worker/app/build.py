"""The composition root: settings in, a worker out. torch is imported late."""

import gc
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker import __version__
from worker.app.memory import settle, tidy
from worker.app.place import Place
from worker.app.registry import build_registry
from worker.app.settings import (
    Settings,
    SettingsError,
    forbid_unsafe_loading,
)
from worker.app.stores import bucket_opener, build_adapter_folders, build_bucket, build_store
from worker.catalog.registry import Registry, RegistryError
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.model import ModelFiles
from worker.core.ports import Backend
from worker.core.turn import StopSignal
from worker.engine.pickles import PickleConverter
from worker.engine.plan import make_plan
from worker.engine.trial import Trials
from worker.net.fetch import ImageFetcher
from worker.service.accepting.acceptance import Acceptor
from worker.service.accepting.resolving import ModelResolver, Policy
from worker.service.generation import GenerationService
from worker.service.introspection.device import DeviceIntrospection
from worker.service.introspection.models import ModelIntrospection
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.output_folder import OutputFolder
from worker.service.limits.accounts import Accounts
from worker.service.limits.admission import Admission, AdmissionLimits, Load
from worker.service.limits.job_limits import JobLimits
from worker.service.limits.pools import Pools
from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.service.local.backend import LocalBackend
from worker.service.local.batching import BatchMux
from worker.service.local.engine_thread import EngineThread, ResidentEngine
from worker.service.local.provisioning import Provisioner, refuse_pickles
from worker.service.local.vouching import Vouching
from worker.service.operations import Operations
from worker.service.usage.log import UsageLog
from worker.service.usage.metrics import Metrics
from worker.service.usage.telemetry import MeteredBackend, Observer, Telemetry
from worker.store.refs import parse_reference
from worker.store.rehash import Rehash
from worker.store.store import Store
from worker.wire.request import ALIASES

_LOG = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class Worker:
    """A built worker: everything that a door needs."""

    settings: Settings
    resolver: ModelResolver
    store: Store
    provisioner: Provisioner
    operations: Operations
    engine: EngineThread
    mux: BatchMux
    metrics: Metrics
    usage_log: UsageLog
    quotas: Quotas

    @property
    def registry(self) -> Registry:
        """The models that are served."""
        return self.resolver.registry

    def reload(self) -> None:
        """Read models.yaml again; a mistake in it changes nothing, and the log names it."""
        try:
            registry = build_registry(self.settings)
        except (RegistryError, SettingsError) as error:
            _LOG.error("models.yaml is not reloaded: %s", error)
            return
        self.resolver.replace_registry(registry)
        self.operations.readiness.wake()
        _LOG.info("models.yaml is reloaded: %d models", len(registry.models))

    def tend_volume(self) -> None:
        """Read the volume's files back from now on, slowly, in a thread that ends with the process."""
        rate = self.settings.rehash_mb_per_second * 1e6
        if rate:
            rehash = Rehash(self.settings.models_dir, rate)
            threading.Thread(target=rehash.run, args=(threading.Event(),), name="rehash", daemon=True).start()

    def close(self) -> None:
        """Write down what is counted and traced. Blocking."""
        self.operations.telemetry.close()
        self.quotas.close()

    async def until_lost(self) -> None:
        """Watch the engine, and return once it is lost: the process should end then, and another take its place."""
        await self.engine.watchdog.watch(lambda: self.engine.lost is not None, self.mux.give_up)

    async def tidy(self) -> None:
        """Keep the process's memory small. This runs until it is cancelled."""
        admission = self.operations.generation.admission
        await tidy(lambda: admission.taken, lambda: admission.running + admission.queued, self.operations.pools.own)

    async def warm_up(self, warm: Callable[[], None] = lambda: None) -> None:
        """Load the models to be served first, or without WARM_UP look for their files; then try the failed ones again.

        `warm` is called once the worker can take jobs. This runs until it is cancelled.
        """
        readiness, loaded = self.operations.readiness, self.settings.warm_up
        if not loaded:
            warm()
        await readiness.prepare(loaded=loaded)
        warm()
        await readiness.retry(loaded=loaded)


def build_worker(
    settings: Settings, build_engine: Callable[[], ResidentEngine] | None = None, place: Place | None = None
) -> Worker:
    """Build a worker with its own device. Nothing heavy happens here: its thread builds the engine on first use.

    `place` is that of a process among several.
    """
    forbid_unsafe_loading()
    registry = build_registry(settings)
    store = build_store(settings)
    policy = Policy(
        default_model=settings.default_model_id,
        allow_unregistered=settings.allow_unregistered_models,
        allowed_orgs=settings.allowed_orgs,
        denied_orgs=settings.denied_orgs,
        allowed_hosts=settings.allowed_hosts,
        denied_hosts=settings.denied_hosts,
    )
    resolver = ModelResolver(
        registry,
        policy,
        parse_reference,
        lambda source, variant: store.look(source, variant, StopSignal(settings.timeout_seconds)),
    )
    vouching = _vouching(settings, resolver)
    provisioner = Provisioner(store, resolver, _without_pickles(settings), settings.safety_checker, vouching)
    engine = EngineThread(build_engine or (lambda: _settled(_diffusers_engine(settings))), settings.silence_seconds)
    pools = Pools()
    limits = JobLimits(settings.max_images, settings.max_loras, settings.timeout_seconds)
    mux = BatchMux(engine, settings.batch_size, settings.batch_timeout_ms / 1000)
    admission = Admission(
        AdmissionLimits(settings.max_concurrent_jobs, settings.max_queued_jobs, settings.max_pixel_steps),
        engine.watchdog.check,
    )
    local = LocalBackend(provisioner, pools, admission, mux)
    backend: Backend = MeteredBackend(local, settings.gpu_price_per_hour)
    name = socket.gethostname()
    accounts = Accounts(settings.volume / "state" / f"quotas-{name}.json", place.shared_accounts if place else None)
    quotas = Quotas(QuotaLimits(settings.rate_limit_per_minute, settings.quota_pixel_steps_per_day), accounts)
    fetch = ImageFetcher(allow_private=settings.allow_private_urls)
    folders = build_adapter_folders(settings)
    acceptor = Acceptor(resolver, limits, pools, fetch, aliases=ALIASES, find_file=folders.find)
    generation = GenerationService(acceptor, backend, admission, quotas)

    def load() -> Load:
        return Load(running=admission.running - mux.waiting, queued=admission.queued + mux.waiting)

    introspection = ModelIntrospection(resolver, store, limits, pools.headers, folders)
    device = DeviceIntrospection(resolver, provisioner, engine, _plan, pools, load)
    readiness = Readiness(device, (settings.default_model_id, *settings.preload_models))
    folder = OutputFolder(settings.volume) if settings.has_volume else None
    delivery = Delivery(int(settings.max_response_mb * 1e6), build_bucket(settings), bucket_opener(settings), folder)
    metrics = Metrics(__version__, load, pools.all)
    usage_log = UsageLog(settings.usage_dir, f"{name}-{place.number}" if place else name)
    telemetry = Telemetry(resolver.registered_id, [metrics, usage_log, *_tracing(settings)])
    operations = Operations(
        generation, introspection, device, readiness, delivery, telemetry, pools, settings.timeout_seconds
    )
    return Worker(settings, resolver, store, provisioner, operations, engine, mux, metrics, usage_log, quotas)


def _tracing(settings: Settings) -> list[Observer]:
    """Return the traces' observer, if traces have a destination; else not even their library is imported."""
    if settings.otel_exporter_otlp_endpoint is None:
        return []
    from worker.service.usage.tracing import Tracing, otlp

    return [Tracing(__version__, otlp(settings.otel_exporter_otlp_endpoint, settings.otel_headers))]


def _settled(engine: ResidentEngine) -> ResidentEngine:
    """Return an engine that was just built: the libraries that were imported for it stay."""
    settle()
    return engine


def _diffusers_engine(settings: Settings) -> ResidentEngine:
    from worker.engine.engine import DiffusersEngine
    from worker.engine.safety import SafetyPolicy

    # Half a million objects of the libraries live as long as the process. The garbage collector would look at each of
    # them, for a quarter of a second, whenever a model makes room for another, and now and then amid a job.
    gc.collect()
    gc.freeze()
    policy = SafetyPolicy(settings.safety_threshold, settings.safety_action, settings.safety_labels)
    return DiffusersEngine(settings.device, settings.max_resident_models, settings.resident_loras, policy)


def _without_pickles(settings: Settings) -> Callable[[Path], Path]:
    return PickleConverter(settings.volume / "converted").convert if settings.allow_pickles else refuse_pickles


def _vouching(settings: Settings, resolver: ModelResolver) -> Vouching:
    if settings.trial_loads == "off":
        return Vouching()
    trials = Trials(settings.volume / "state" / "tried")
    return Vouching(trials.check, None if settings.trial_loads == "all" else resolver.is_registered)


def _plan(model: KnownModel, files: ModelFiles, device: DeviceInfo, megapixels: float) -> LoadPlan:
    return make_plan(model, files, device, megapixels=megapixels)
