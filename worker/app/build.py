"""The composition of a worker: settings in, a worker with its own device out. torch is imported late."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from worker.app.ai_toolkit import Trainers, build_trainers
from worker.app.custom_pipelines import custom_pipelines
from worker.app.kernels import allowed_kernels
from worker.app.memory import settle
from worker.app.place import Place
from worker.app.registry import build_matrix
from worker.app.served import Groundwork, Served, admission_limits
from worker.app.settings import Settings, forbid_unsafe_loading
from worker.app.stores import bucket_opener, build_bucket, build_cache, build_pairs
from worker.app.training import build_trainings, device_trainer, probed
from worker.app.versions import VersionParts
from worker.core import moments
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.model import ModelFiles
from worker.core.ports import Backend
from worker.core.unsearched import unsearched
from worker.engine.pickles import PickleConverter
from worker.engine.plan import make_plan
from worker.engine.trial import Trials
from worker.service.accepting.judging import Judge
from worker.service.accepting.resolving import ModelResolver
from worker.service.alerts.measures import Readings
from worker.service.discovery.golden import GoldenComparer
from worker.service.generation import GenerationService
from worker.service.introspection.device import DeviceIntrospection, Memories
from worker.service.introspection.readiness import Readiness
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.output_folder import OutputFolder
from worker.service.limits.admission import Admission, Load
from worker.service.limits.shares import Shares
from worker.service.local.backend import LocalBackend
from worker.service.local.batching import BatchMux
from worker.service.local.engine_thread import EngineThread, ResidentEngine
from worker.service.local.improving import IDLE_S
from worker.service.local.pace_store import PaceStore
from worker.service.local.provisioning import Provisioner, refuse_pickles
from worker.service.local.remembering import RememberingBackend
from worker.service.local.volume import Volume
from worker.service.local.vouching import Vouching
from worker.service.operations import Operations
from worker.service.usage.pace import Paces
from worker.service.usage.telemetry import MeteredBackend
from worker.service.usage.worked import Worked
from worker.service.versions.pairing import Pairing
from worker.store.reduced import ReducedWeights
from worker.store.rehash import Rehash
from worker.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker(Served):
    """A built worker, with the device behind it."""

    store: Store
    provisioner: Provisioner
    engine: EngineThread
    mux: BatchMux
    trainer: Trainers

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
    resolver, pools, provisioner = ground.resolver, ground.pools, _provisioner(settings, ground)
    engine = _engine_thread(settings, build_engine)
    admission = Admission(admission_limits(settings), engine.watchdog.check)
    mux = _mux(settings, engine, admission)
    local = LocalBackend(provisioner, pools, admission, mux)
    worked = Worked(settings.volume / "state" / "worked")
    generation, paces = _generation(settings, ground, local, admission, engine, worked), Paces()

    def load() -> Load:
        return Load(running=admission.running - mux.waiting, queued=admission.queued + mux.waiting)

    memories = Memories(generation.judge, worked.sentences, paces.of)
    device = DeviceIntrospection(resolver, provisioner, engine, _plan, pools, load, memories)
    metrics = ground.metrics(load, lambda: [each for each in engine.levers if resolver.registered_id(each.model)])
    alerts = ground.alerts(lambda: Readings(load().queued, int(engine.lost is not None)))
    pairs = build_pairs(settings, ground.usage_log.worker)
    versions = VersionParts.of(settings, ground.store, resolver, provisioner, pairs)
    trainer = build_trainers(settings, device_trainer(settings, provisioner, engine, generation, pools))
    discovery, quiet = ground.discovery(device, paces.of), partial(generation.run_aside, is_spare=True)
    operations = Operations(
        generation,
        ground.recipes(generation, device, paces.of),
        ground.introspection,
        device,
        Readiness(device, (settings.default_model_id, *settings.preload_models)),
        _delivery(settings),
        ground.telemetry(metrics, paces, alerts, versions.halting),
        versions.actions,
        pools,
        discovery,
        settings.timeout_seconds,
        build_trainings(settings, ground, trainer, admission, device, versions.actions.changes),
        alerts,
        Pairing(resolver.versions, pairs, admission, quiet, pools.own),
        GoldenComparer(generation, discovery, pools.own),
    )
    moments.note("worker built")
    return Worker(
        settings=settings,
        resolver=resolver,
        operations=operations,
        metrics=metrics,
        usage_log=ground.usage_log,
        quotas=ground.quotas,
        versions=versions,
        store=ground.store,
        provisioner=provisioner,
        engine=engine,
        mux=mux,
        trainer=trainer,
    )


def _generation(
    settings: Settings,
    ground: Groundwork,
    local: LocalBackend,
    admission: Admission,
    engine: EngineThread,
    worked: Worked,
) -> GenerationService:
    remembering = RememberingBackend(local, ground.resolver, worked, engine)
    backend: Backend = MeteredBackend(remembering, settings.gpu_price_per_hour)
    judge = Judge(build_matrix(settings), ground.resolver, engine.device_info)
    return GenerationService(ground.acceptor, backend, admission, ground.quotas, judge)


def _provisioner(settings: Settings, ground: Groundwork) -> Provisioner:
    vouching = _vouching(settings, ground.resolver)
    unpickle = _without_pickles(settings)
    reduced = ReducedWeights(settings.volume / "reduced")
    return Provisioner(ground.store, ground.resolver, unpickle, settings.safety_checker, vouching, reduced)


def _mux(settings: Settings, engine: EngineThread, admission: Admission) -> BatchMux:
    idle_s = IDLE_S if settings.levers == "auto" else None
    store = PaceStore(settings.volume / "state" / "paces")
    timeout_s = settings.batch_timeout_ms / 1000
    shares = Shares(admission.rights.weight)
    return BatchMux(engine, settings.batch_size, timeout_s, idle_s, lambda: admission.closing, store, shares)


def _delivery(settings: Settings) -> Delivery:
    folder = OutputFolder(settings.volume) if settings.has_volume else None
    return Delivery(int(settings.max_response_mb * 1e6), build_bucket(settings), bucket_opener(settings), folder)


def _engine_thread(settings: Settings, build_engine: Callable[[], ResidentEngine] | None) -> EngineThread:
    if build_engine is not None:
        return EngineThread(build_engine, settings.silence_seconds)
    kernels = allowed_kernels(settings)
    return EngineThread(
        lambda: _settled(_diffusers_engine(settings, kernels)), settings.silence_seconds, partial(probed, settings)
    )


def _settled(engine: ResidentEngine) -> ResidentEngine:
    """Return an engine that was just built: the libraries that were imported for it stay, half a million objects."""
    settle()
    return engine


def _diffusers_engine(settings: Settings, kernels: Mapping[str, Path]) -> ResidentEngine:
    with unsearched():
        from worker.engine.custom import serve_custom
        from worker.engine.engine import DiffusersEngine
        from worker.engine.levers.compile_cache import CompileCache
        from worker.engine.levers.decisions import Decisions
        from worker.engine.levers.gate import Gate
        from worker.engine.levers.table import LEVERS
        from worker.engine.resident import Budget
    from worker.engine.safety import SafetyPolicy

    serve_custom(custom_pipelines(settings))
    policy = SafetyPolicy(settings.safety_threshold, settings.safety_action, settings.safety_labels)
    gate = Gate()
    key = settings.compile_cache_key
    compiled = None
    if key is not None:
        most = int(settings.compile_cache_gb * 2**30)
        compiled = CompileCache(settings.volume / "state" / "compiled", key.get_secret_value().encode(), most)
    if settings.levers == "auto":
        gate = Gate(LEVERS, Decisions(settings.volume / "state" / "levers"), kernels, compiled)
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
