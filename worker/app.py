"""The composition root: settings in, a worker out. The only file that knows every room; torch is imported late."""

import asyncio
import ctypes
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker import __version__
from worker.catalog.headers import read_header
from worker.catalog.registry import Registry, RegistryError, load_registry
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import WorkerError
from worker.core.model import Detection, LoraSpec, ModelFiles, ModelSpec
from worker.core.ports import Backend
from worker.core.result import Progress
from worker.engine.plan import make_plan
from worker.media.fetch import GuardedFetcher
from worker.service.execution import EngineThread, LocalBackend, ResidentEngine
from worker.service.generation import GenerationService, Limits
from worker.service.introspection import Introspection
from worker.service.jobs import JobLedger
from worker.service.provisioning import Provisioner
from worker.service.resolving import ModelResolver, Policy
from worker.settings import (
    RUNPOD_VOLUME,
    Settings,
    SettingsError,
    prepare_sdk_environment,
    read_settings,
    tier_overrides,
)
from worker.store.bucket import Bucket, BucketConfig
from worker.store.huggingface import HuggingFaceHub
from worker.store.local import LocalFolders
from worker.store.refs import parse_reference
from worker.store.store import Store
from worker.transport.actions import Actions
from worker.transport.delivery import Delivery
from worker.transport.serverless import ServerlessDoor, saving
from worker.transport.wire import ALIASES

_LOG = logging.getLogger("worker")
# Read before the volume's cache and never written: the model that RunPod put on the host, and the one in the image.
_CACHED_MODELS = (RUNPOD_VOLUME / "huggingface-cache" / "hub", Path("/opt/huggingface/hub"))


@dataclass(frozen=True, slots=True)
class Worker:
    """Everything that a door needs."""

    settings: Settings
    registry: Registry
    resolver: ModelResolver
    store: Store
    actions: Actions
    engine: EngineThread

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


def build_store(settings: Settings) -> Store:
    """Where models come from."""
    lookup = [folder for folder in _CACHED_MODELS if folder != settings.hub_cache]
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    hub = HuggingFaceHub(
        settings.hub_cache,
        lookup=lookup,
        read_header=read_header,
        endpoint=settings.hf_endpoint,
        token=token,
        offline=settings.offline,
    )
    roots = [settings.models_yaml.resolve().parent / "models", settings.volume, *settings.allowed_model_dirs]
    return Store({"hf": hub, "file": LocalFolders(roots, read_header)})


def build_worker(settings: Settings, build_engine: Callable[[], ResidentEngine] | None = None) -> Worker:
    """A worker with its own device. Nothing heavy happens here: the engine is built in its thread, on first use."""
    registry = build_registry(settings)
    store = build_store(settings)
    policy = Policy(
        default_model=settings.default_model_id,
        allow_unregistered=settings.allow_unregistered_models,
        allowed_orgs=settings.allowed_orgs,
        denied_orgs=settings.denied_orgs,
    )
    resolver = ModelResolver(registry, policy, parse_reference, store.peek)
    provisioner = Provisioner(store, resolver)
    engine = EngineThread(build_engine or (lambda: _diffusers_engine(settings)))
    limits = Limits(settings.max_images, settings.max_loras, settings.timeout_seconds)
    backend: Backend = LocalBackend(provisioner, engine)
    generation = GenerationService(
        resolver,
        backend,
        JobLedger(settings.result_cache_seconds),
        limits,
        GuardedFetcher(allow_private=settings.allow_private_urls),
        aliases=ALIASES,
    )
    introspection = Introspection(resolver, store, provisioner, engine, _plan, limits, __version__)
    delivery = Delivery(int(settings.max_response_mb * 1e6), _bucket(settings))
    return Worker(settings, registry, resolver, store, Actions(generation, introspection, delivery), engine)


def run_serverless() -> None:
    """Serve RunPod's queue; or, off its machines, run one job from test_input.json or --test_input and exit."""
    prepare_sdk_environment()
    import runpod

    _configure_logging()
    local = "--rp_serve_api" not in sys.argv
    settings: Settings | None = None
    try:
        settings = read_settings()
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
    for warning in settings.warnings():
        _LOG.warning("%s", warning)
    door = ServerlessDoor(
        worker.actions,
        concurrency=settings.worker_concurrency,
        send_progress=None if local else runpod.serverless.progress_update,
        on_loop_start=lambda: _start_warm_up(worker),
    )
    if not local:
        for check in (check_volume(settings), check_device(settings)):
            runpod.serverless.register_fitness_check(check)
    handler = saving(door.handle, settings.outputs_dir, _say_at_exit) if local else door.handle
    runpod.serverless.start({"handler": handler, "concurrency_modifier": door.concurrency})


def check_volume(settings: Settings) -> Callable[[], None]:
    """A fitness check: the place for models can be written."""

    def volume_writable() -> None:
        try:
            settings.hub_cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=settings.hub_cache) as file:
                file.write(b"1")
        except OSError as error:
            raise RuntimeError(
                f"{settings.hub_cache} cannot be written ({error.strerror}); attach a network volume or set VOLUME_DIR."
            ) from None

    return volume_writable


def check_device(settings: Settings) -> Callable[[], None]:
    """A fitness check: a GPU that should be there answers. Through the driver: importing torch takes too long."""

    def device_usable() -> None:
        if settings.device != "cuda" and not Path("/proc/driver/nvidia/version").exists():
            return
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise RuntimeError("No CUDA driver in this container; run it with the NVIDIA runtime.") from None
        count = ctypes.c_int(0)
        code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
        if code or count.value < 1:
            raise RuntimeError(f"The CUDA driver answers with error {code} and {count.value} devices.")

    return device_usable


def _diffusers_engine(settings: Settings) -> ResidentEngine:
    from worker.engine.engine import DiffusersEngine

    return DiffusersEngine(settings.device, settings.max_resident_models)


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


_background: set[asyncio.Task[None]] = set()


def _start_warm_up(worker: Worker) -> None:
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


def _configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # The libraries' own chatter hides what matters, and some of it names files and URLs.
    for name in ("httpx", "httpx2", "urllib3", "botocore", "huggingface_hub", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _ignore(progress: Progress) -> None:
    """Nobody waits for a warm-up's progress."""
