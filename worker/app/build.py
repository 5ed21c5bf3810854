"""The composition of a worker: settings in, a worker with its own device out. torch is imported late."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.app.kernels import allowed_kernels
from worker.app.memory import settle
from worker.app.place import Place
from worker.app.served import Groundwork, Served
from worker.app.settings import Settings, forbid_unsafe_loading
from worker.app.stores import bucket_opener, build_bucket, build_cache
from worker.app.unsearched import unsearched
from worker.core import moments
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.model import ModelFiles
from worker.core.ports import Backend
from worker.engine.machine import cpu_info, only_cpu
from worker.engine.pickles import PickleConverter
from worker.engine.plan import make_plan
from worker.engine.trial import Trials
from worker.service.accepting.resolving import ModelResolver
from worker.service.generation import GenerationService
from worker.service.introspection.device import DeviceIntrospection
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.output_folder import OutputFolder
from worker.service.limits.admission import Admission, AdmissionLimits, Load
from worker.service.local.backend import LocalBackend
from worker.service.local.batching import BatchMux
from worker.service.local.engine_thread import EngineThread, ResidentEngine
from worker.service.local.improving import IDLE_S
from worker.service.local.provisioning import Provisioner, refuse_pickles
from worker.service.local.volume import Volume
from worker.service.local.vouching import Vouching
from worker.service.operations import Operations
from worker.service.usage.pace import Paces
from worker.service.usage.telemetry import MeteredBackend
from worker.store.rehash import Rehash
from worker.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker(Served):
    """A built worker, with the device behind it."""

    store: Store
    provisioner: Provisioner
    engine: EngineThread
    mux: BatchMux

    @property
    def is_lost(self) -> bool:
        """True once the engine is lost."""
        return self.engine.lost is not None

    @property
    def volume(self) -> Volume:
        """The models on the volume."""
        most = self.settings.cache_max_gb
        pools = self.operations.pools
        max_bytes = int(most * 1e9) if most else None
        return Volume(build_cache(self.settings), self.resolver, self.provisioner, pools, max_bytes)

    def tend_volume(self) -> None:
        """Read the volume's files back from now on, slowly, in a thread that ends with the process."""
        rate = self.settings.rehash_mb_per_second * 1e6
        if rate:
            rehash = Rehash(self.settings.models_dir, rate)
            threading.Thread(target=rehash.run, args=(threading.Event(),), name="rehash", daemon=True).start()

    async def until_lost(self) -> None:
        """Watch the engine, and return once it is lost: the process should end then, and another take its place."""
        await self.engine.watchdog.watch(lambda: self.engine.lost is not None, self.mux.give_up)

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
    ground = Groundwork.of(settings, place)
    resolver, pools = ground.resolver, ground.pools
    vouching = _vouching(settings, resolver)
    provisioner = Provisioner(ground.store, resolver, _without_pickles(settings), settings.safety_checker, vouching)
    engine = _engine_thread(settings, build_engine)
    admission = Admission(
        AdmissionLimits(settings.max_concurrent_jobs, settings.max_queued_jobs, settings.max_pixel_steps),
        engine.watchdog.check,
    )
    idle_s = IDLE_S if settings.levers == "auto" else None
    timeout_s = settings.batch_timeout_ms / 1000
    mux = BatchMux(engine, settings.batch_size, timeout_s, idle_s, lambda: admission.closing)
    local = LocalBackend(provisioner, pools, admission, mux)
    backend: Backend = MeteredBackend(local, settings.gpu_price_per_hour)
    generation = GenerationService(ground.acceptor, backend, admission, ground.quotas)

    paces = Paces()

    def load() -> Load:
        return Load(running=admission.running - mux.waiting, queued=admission.queued + mux.waiting)

    device = DeviceIntrospection(resolver, provisioner, engine, _plan, pools, load, paces.of)
    readiness = Readiness(device, (settings.default_model_id, *settings.preload_models))
    folder = OutputFolder(settings.volume) if settings.has_volume else None
    delivery = Delivery(int(settings.max_response_mb * 1e6), build_bucket(settings), bucket_opener(settings), folder)
    metrics = ground.metrics(load, lambda: [each for each in engine.levers if resolver.registered_id(each.model)])
    telemetry = ground.telemetry(metrics, paces)
    operations = Operations(
        generation, ground.introspection, device, readiness, delivery, telemetry, pools, settings.timeout_seconds
    )
    moments.note("worker built")
    return Worker(
        settings=settings,
        resolver=resolver,
        operations=operations,
        metrics=metrics,
        usage_log=ground.usage_log,
        quotas=ground.quotas,
        store=ground.store,
        provisioner=provisioner,
        engine=engine,
        mux=mux,
    )


def _engine_thread(settings: Settings, build_engine: Callable[[], ResidentEngine] | None) -> EngineThread:
    if build_engine is not None:
        return EngineThread(build_engine, settings.silence_seconds)
    kernels = allowed_kernels(settings)
    return EngineThread(
        lambda: _settled(_diffusers_engine(settings, kernels)), settings.silence_seconds, lambda: _device(settings)
    )


def _device(settings: Settings) -> DeviceInfo:
    """Return the device that the engine would have. torch alone is imported for a GPU, and nothing for a CPU."""
    if only_cpu(settings.device):
        return cpu_info()
    from worker.engine.devices import choose_device, probe

    return probe(choose_device(settings.device))


def _settled(engine: ResidentEngine) -> ResidentEngine:
    """Return an engine that was just built: the libraries that were imported for it stay, half a million objects."""
    settle()
    return engine


def _diffusers_engine(settings: Settings, kernels: Mapping[str, Path]) -> ResidentEngine:
    with unsearched():
        from worker.engine.engine import DiffusersEngine
        from worker.engine.levers.decisions import Decisions
        from worker.engine.levers.gate import Gate
        from worker.engine.levers.table import LEVERS
        from worker.engine.resident import Budget
    from worker.engine.safety import SafetyPolicy

    policy = SafetyPolicy(settings.safety_threshold, settings.safety_action, settings.safety_labels)
    gate = Gate()
    if settings.levers == "auto":
        gate = Gate(LEVERS, Decisions(settings.volume / "state" / "levers"), kernels)
    return DiffusersEngine(
        settings.device,
        Budget(
            settings.max_resident_models,
            settings.resident_loras,
            _bytes_of(settings.lora_merge_gb),
            _bytes_of(settings.ram_tier_gb),
        ),
        policy,
        gate,
    )


def _bytes_of(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _without_pickles(settings: Settings) -> Callable[[Path], Path]:
    return PickleConverter(settings.volume / "converted").convert if settings.allow_pickles else refuse_pickles


def _vouching(settings: Settings, resolver: ModelResolver) -> Vouching:
    if settings.trial_loads == "off":
        return Vouching()
    trials = Trials(settings.volume / "state" / "tried")
    return Vouching(trials.check, None if settings.trial_loads == "all" else resolver.is_registered)


def _plan(model: KnownModel, files: ModelFiles, device: DeviceInfo, megapixels: float) -> LoadPlan:
    return make_plan(model, files, device, megapixels=megapixels)
