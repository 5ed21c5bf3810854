"""The composition root: settings in, a worker out. The only file that knows every room; torch is imported late."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from worker import __version__
from worker.catalog.containers.headers import header_end, parse_header, read_header
from worker.catalog.declared import HOSTED_ONLY
from worker.catalog.registry import Registry, RegistryError, load_registry
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import WorkerError
from worker.core.job import StopSignal
from worker.core.model import Detection, LoraSpec, ModelFiles, ModelSpec
from worker.core.ports import Backend
from worker.core.request import S3Config
from worker.core.result import Progress
from worker.engine.pickles import PickleConverter
from worker.engine.plan import make_plan
from worker.fitness import check_device, check_volume, library_warnings
from worker.lifecycle import hear_reload, hear_shutdown
from worker.logs import configure_logging
from worker.media.fetch import GuardedFetcher
from worker.media.guard import RefusedUrl
from worker.service.admission import Admission, AdmissionLimits, Load
from worker.service.batching import BatchMux
from worker.service.engine_thread import EngineThread, ResidentEngine
from worker.service.execution import LocalBackend
from worker.service.generation import GenerationService, Limits
from worker.service.introspection import Introspection
from worker.service.jobs import JobLedger
from worker.service.ledger import UsageLedger
from worker.service.metrics import Metrics
from worker.service.provisioning import Provisioner, refuse_pickles
from worker.service.quotas import QuotaLimits, Quotas
from worker.service.resolving import ModelResolver, Policy
from worker.service.telemetry import MeteredBackend, Observer, Telemetry
from worker.settings import (
    RUNPOD_VOLUME,
    Settings,
    SettingsError,
    forbid_unsafe_loading,
    prepare_sdk_environment,
    read_settings,
    tier_overrides,
)
from worker.store.bucket import Bucket, BucketConfig, GuardedSender
from worker.store.cache import VolumeCache
from worker.store.civitai import CivitAI
from worker.store.civitai_api import CivitaiApi, civitai_hosts
from worker.store.huggingface import HuggingFaceHub
from worker.store.local import LocalFolders
from worker.store.lockfile import Lockfile, LockfileError
from worker.store.outputs import OutputFolder
from worker.store.refs import parse_reference
from worker.store.remote_header import HeaderParser
from worker.store.store import Source, Store
from worker.store.url import UrlFiles
from worker.store.web import Web
from worker.transport.actions import Actions
from worker.transport.delivery import Delivery
from worker.transport.serverless import ServerlessDoor, saving
from worker.transport.wire import ALIASES

_LOG = logging.getLogger("worker")
# Read first and never written: the model that RunPod put on the host, in the Hub's layout, and the one in the image.
_CACHED_MODELS = (RUNPOD_VOLUME / "huggingface-cache" / "hub",)
_BAKED_MODELS = Path("/opt/models")


@dataclass(frozen=True, slots=True)
class Worker:
    """Everything that a door needs."""

    settings: Settings
    resolver: ModelResolver
    store: Store
    provisioner: Provisioner
    actions: Actions
    engine: EngineThread
    metrics: Metrics
    ledger: UsageLedger
    quotas: Quotas

    @property
    def registry(self) -> Registry:
        """The models that are served."""
        return self.resolver.registry

    def reload(self) -> None:
        """Read models.yaml again; with a mistake in it everything stays as it is, and the log says what is wrong."""
        try:
            registry = build_registry(self.settings)
        except (RegistryError, SettingsError) as error:
            _LOG.error("models.yaml is not reloaded: %s", error)
            return
        self.resolver.replace_registry(registry)
        _LOG.info("models.yaml is reloaded: %d models", len(registry.models))

    async def warm_up(self) -> None:
        """Build the engine and load the models that are served first, in the background; failures are only logged."""
        names = dict.fromkeys([self.settings.default_model_id, *self.settings.preload_models])
        for name in names:
            try:
                await self.actions.introspection.preload(name, _ignore)
            except WorkerError as error:
                _LOG.warning("warm-up of %s: %s", name, error.message)


def build_registry(settings: Settings) -> Registry:
    """models.yaml with what the environment adds to it. Raises RegistryError, SettingsError."""
    registry = load_registry(settings.models_yaml, parse_source=parse_reference, overrides=tier_overrides())
    default = registry.find(settings.default_model_id)
    if settings.model_id is not None and (default is None or settings.model_revision is not None):
        try:
            source = default.source if default else parse_reference(settings.model_id)
        except WorkerError as error:
            raise SettingsError(f"MODEL_ID: {error.message}") from None
        if settings.model_revision is not None:
            source = source.model_copy(update={"revision": settings.model_revision})
        default = (default or ModelSpec(id=settings.model_id, source=source)).model_copy(update={"source": source})
        registry = registry.with_model(default)
    if default is None:
        raise SettingsError(
            f"DEFAULT_MODEL {settings.default_model!r} is not in {settings.models_yaml.name}; name one that is, "
            "or set MODEL_ID to a Hugging Face repository."
        )
    if settings.loras:
        loras = (*default.loras, *(LoraSpec(model=text) for text in settings.loras))
        registry = registry.with_model(default.model_copy(update={"loras": loras}))
    return registry


def build_cache(settings: Settings) -> VolumeCache:
    """The models on the volume."""
    lookup = [folder for folder in (_BAKED_MODELS,) if folder != settings.models_dir]
    max_bytes = int(settings.cache_max_gb * 1e9) if settings.cache_max_gb else None
    return VolumeCache(settings.models_dir, lookup=lookup, max_bytes=max_bytes)


def build_store(settings: Settings) -> Store:
    """Where models come from. Raises SettingsError for a lockfile that cannot be used."""
    cache, web = build_cache(settings), _web(settings)
    parser = HeaderParser(header_end, parse_header)
    pickles = settings.allow_pickles
    read = partial(read_header, allow_pickles=pickles)
    hub = HuggingFaceHub(
        cache,
        web,
        lookup=_CACHED_MODELS,
        shared=settings.hub_caches,
        read_header=read,
        parser=parser,
        endpoint=settings.hf_endpoint,
        token=_secret(settings.hf_token),
        offline=settings.offline,
        allow_pickles=pickles,
    )
    api = CivitaiApi(web, settings.civitai_endpoint, has_token=settings.civitai_token is not None)
    civitai = CivitAI(
        cache,
        web,
        api,
        read_header=read,
        parser=parser,
        hosted_only=HOSTED_ONLY,
        offline=settings.offline,
        allow_pickles=pickles,
    )
    # What callers link to is asked for without any token, and without the endpoints' leave to be private.
    strangers = Web(allow_private=settings.allow_private_urls)
    files = UrlFiles(cache, strangers, read_header=read_header, parser=parser, offline=settings.offline)
    roots = [settings.models_yaml.resolve().parent / "models", settings.volume, *settings.allowed_model_dirs]
    folders = LocalFolders(roots, read, allow_pickles=pickles)
    schemes: dict[str, Source] = {"hf": hub, "civitai": civitai, "url": files, "file": folders}
    return Store(schemes, _lockfile(settings), cache.discard)


def _web(settings: Settings) -> Web:
    """The client of the operator's own endpoints, which knows each one's token."""
    endpoints = civitai_hosts(settings.civitai_endpoint, _secret(settings.civitai_token))
    try:
        return Web(
            {settings.hf_endpoint: _secret(settings.hf_token), **endpoints}, allow_private=settings.allow_private_urls
        )
    except RefusedUrl as error:
        raise SettingsError(f"HF_ENDPOINT or CIVITAI_ENDPOINT cannot be used: {error}.") from None


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


def _lockfile(settings: Settings) -> Lockfile:
    path = settings.lock_file
    # One that was asked for by name must be there; the one beside the registry may be.
    if path is None or (settings.models_lock is None and not path.is_file()):
        return Lockfile()
    try:
        return Lockfile.read(path)
    except LockfileError as error:
        raise SettingsError(f"MODELS_LOCK: {error}") from None


def build_worker(settings: Settings, build_engine: Callable[[], ResidentEngine] | None = None) -> Worker:
    """A worker with its own device. Nothing heavy happens here: the engine is built in its thread, on first use."""
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
    provisioner = Provisioner(store, resolver, _without_pickles(settings), settings.safety_checker)
    engine = EngineThread(build_engine or (lambda: _diffusers_engine(settings)))
    limits = Limits(settings.max_images, settings.max_loras, settings.timeout_seconds)
    mux = BatchMux(engine, settings.batch_size, settings.batch_timeout_ms / 1000)
    backend: Backend = MeteredBackend(LocalBackend(provisioner, mux), settings.gpu_price_per_hour)
    admission = Admission(
        AdmissionLimits(settings.max_concurrent_jobs, settings.max_queued_jobs, settings.max_pixel_steps)
    )
    quotas = Quotas(
        QuotaLimits(settings.rate_limit_per_minute, settings.quota_pixel_steps_per_day),
        settings.volume / "state" / f"quotas-{socket.gethostname()}.json",
    )
    generation = GenerationService(
        resolver,
        backend,
        JobLedger(settings.result_cache_seconds),
        limits,
        GuardedFetcher(allow_private=settings.allow_private_urls),
        admission,
        quotas,
        aliases=ALIASES,
    )

    def load() -> Load:
        return Load(running=admission.running - mux.waiting, queued=admission.queued + mux.waiting)

    introspection = Introspection(resolver, store, provisioner, engine, _plan, limits, __version__, load)
    folder = OutputFolder(settings.volume) if settings.has_volume else None
    delivery = Delivery(int(settings.max_response_mb * 1e6), _bucket(settings), _opener(settings), folder)
    metrics = Metrics(__version__, load)
    ledger = UsageLedger(settings.usage_dir, socket.gethostname())
    telemetry = Telemetry(resolver.registered_id, [metrics, ledger, *_tracing(settings)])
    actions = Actions(generation, introspection, delivery, telemetry)
    return Worker(settings, resolver, store, provisioner, actions, engine, metrics, ledger, quotas)


def run_serverless() -> None:
    """Serve RunPod's queue; or, off its machines, run one job from test_input.json or --test_input and exit."""
    prepare_sdk_environment()
    import runpod

    local = "--rp_serve_api" not in sys.argv
    settings: Settings | None = None
    try:
        settings = read_settings()
        configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
        local = local and (settings.runpod_webhook_get_job is None or "--test_input" in sys.argv)
        if local:  # pictures go to files here, and files have no size limit
            settings = settings.without_response_limit()
        worker = build_worker(settings)
    except (SettingsError, RegistryError) as error:
        if settings is None or local:
            sys.exit(f"error: {error}")
        # On the platform an unhealthy ping says more than a process that dies.
        _refuse_to_start(str(error))
        return
    for warning in (*settings.warnings(), *library_warnings()):
        _LOG.warning("%s", warning)
    door = ServerlessDoor(
        worker.actions,
        concurrency=settings.jobs_taken,
        send_progress=None if local else runpod.serverless.progress_update,
        on_loop_start=lambda: _begin(worker),
    )
    if not local:
        for check in (check_volume(settings), check_device(settings)):
            runpod.serverless.register_fitness_check(check)
    handler = saving(door.handle, settings.outputs_dir, _say_at_exit) if local else door.handle
    runpod.serverless.start({"handler": handler, "concurrency_modifier": door.concurrency})


def _tracing(settings: Settings) -> list[Observer]:
    """Traces, where there is somewhere to send them; else not even their library is imported."""
    if settings.otel_exporter_otlp_endpoint is None:
        return []
    from worker.service.tracing import Tracing, otlp

    return [Tracing(__version__, otlp(settings.otel_exporter_otlp_endpoint, settings.otel_headers))]


def _diffusers_engine(settings: Settings) -> ResidentEngine:
    from worker.engine.engine import DiffusersEngine
    from worker.engine.safety import SafetyPolicy

    policy = SafetyPolicy(settings.safety_threshold, settings.safety_action, settings.safety_labels)
    return DiffusersEngine(settings.device, settings.max_resident_models, settings.resident_loras, policy)


def _without_pickles(settings: Settings) -> Callable[[Path], Path]:
    return PickleConverter(settings.volume / "converted").convert if settings.allow_pickles else refuse_pickles


def _plan(spec: ModelSpec, files: ModelFiles, detection: Detection, device: DeviceInfo, megapixels: float) -> LoadPlan:
    return make_plan(spec, files, detection, device, megapixels=megapixels)


def _bucket(settings: Settings) -> Bucket | None:
    if (
        settings.bucket_endpoint_url is None
        or settings.bucket_name is None
        or settings.bucket_access_key_id is None
        or settings.bucket_secret_access_key is None
    ):
        return None
    return Bucket(
        BucketConfig(
            endpoint_url=settings.bucket_endpoint_url,
            name=settings.bucket_name,
            access_key_id=settings.bucket_access_key_id.get_secret_value(),
            secret_access_key=settings.bucket_secret_access_key.get_secret_value(),
            url_expires_s=settings.bucket_url_expires_s,
        )
    )


def _opener(settings: Settings) -> Callable[[S3Config], Bucket]:
    """How a caller's own bucket is opened: guarded like every address that a caller names."""

    def open_bucket(named: S3Config) -> Bucket:
        config = BucketConfig(
            endpoint_url=named.endpoint_url,
            name=named.bucket_name,
            access_key_id=named.access_id.get_secret_value(),
            secret_access_key=named.access_secret.get_secret_value(),
            url_expires_s=settings.bucket_url_expires_s,
            named_by="s3Config",
        )
        return Bucket(config, GuardedSender(allow_private=settings.allow_private_urls))

    return open_bucket


_background: set[asyncio.Task[None]] = set()


def _begin(worker: Worker) -> None:
    """What needs the running loop: the signals, once RunPod's SDK has its own handlers, and the warm-up."""
    hear_reload(worker.reload)
    hear_shutdown(worker.actions.generation.admission.close, worker.settings.shutdown_grace_seconds)
    if worker.settings.warm_up:
        task = asyncio.get_running_loop().create_task(worker.warm_up())
        _background.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(_background.discard)


def _refuse_to_start(reason: str) -> None:
    import runpod

    def configuration_valid() -> None:
        raise RuntimeError(reason)

    async def handler(job: object) -> dict[str, object]:
        return {"error": reason, "code": "invalid_configuration", "refresh_worker": True}

    runpod.serverless.register_fitness_check(configuration_valid)
    runpod.serverless.start({"handler": handler})


def _say_at_exit(line: str) -> None:
    """Print after the SDK's own last words, which would bury it."""
    import atexit

    atexit.register(print, line, file=sys.stderr if line.startswith("failed") else sys.stdout)


def _ignore(progress: Progress) -> None:
    """Nobody waits for a warm-up's progress."""
