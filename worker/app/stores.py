"""The sources of models and the destinations of answers: the cache on the volume, the sources, buckets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from worker.app.settings import RUNPOD_VOLUME, Settings, SettingsError
from worker.catalog.base_models import HOSTED_ONLY
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.request import S3Config
from worker.net.bucket import Bucket, BucketConfig, BucketSender
from worker.net.client import Client
from worker.net.guard import RefusedUrl
from worker.service.discovery.finder import Sources
from worker.service.versions.serving import Versions
from worker.store.cache import VolumeCache
from worker.store.civitai import CivitAI
from worker.store.civitai_api import CivitaiApi, civitai_hosts
from worker.store.civitai_search import CivitaiSearch
from worker.store.digests import ForeignDigests
from worker.store.history import HistoryFile
from worker.store.hub_listing import HubListings
from worker.store.hub_search import HubSearch
from worker.store.huggingface import HuggingFaceHub
from worker.store.local import AdapterFolders, LocalFolders
from worker.store.lockfile import Lockfile, LockfileError
from worker.store.other_caches import OtherCaches
from worker.store.pairs import PairFolder
from worker.store.remote_header import HeaderReader
from worker.store.store import Source, Store
from worker.store.url import UrlFiles

# Read first and never written: the model that RunPod put on the host, in the Hub's layout, and the one in the image.
_CACHED_MODELS = (RUNPOD_VOLUME / "huggingface-cache" / "hub",)
_BAKED_MODELS = Path("/opt/models")


def build_cache(settings: Settings) -> VolumeCache:
    """Build the cache of models on the volume."""
    lookup = [folder for folder in (_BAKED_MODELS,) if folder != settings.models_dir]
    max_bytes = int(settings.cache_max_gb * 1e9) if settings.cache_max_gb else None
    cache = VolumeCache(settings.models_dir, lookup=lookup, max_bytes=max_bytes)
    cache.keep(build_versions(settings).digests_in_use)
    return cache


def build_search(settings: Settings) -> Sources:
    """Build the searches of the sites that models come from."""
    client = _client(settings)
    api = CivitaiApi(client, settings.civitai_endpoint, has_token=settings.civitai_token is not None)
    return Sources(CivitaiSearch(api, settings.civitai_endpoint), HubSearch(client, settings.hf_endpoint))


def build_store(settings: Settings) -> Store:
    """Build the store of models. Raises SettingsError for a lockfile that cannot be used."""
    cache, client = build_cache(settings), _client(settings)
    pickles, offline = settings.allow_pickles, settings.offline
    read_local = partial(read_header, allow_pickles=pickles)
    headers = HeaderReader(header_end, parse_header, read_local)
    listings = HubListings(settings.hf_endpoint, client, offline=offline)
    digests = ForeignDigests(settings.models_dir / "foreign", trusts=not settings.verify_cached_files)
    caches = OtherCaches(_CACHED_MODELS, settings.hub_caches, digests.are_right, allow_pickles=pickles)
    hub = HuggingFaceHub(cache, client, listings, headers, caches, allow_pickles=pickles)
    api = CivitaiApi(client, settings.civitai_endpoint, has_token=settings.civitai_token is not None)
    civitai = CivitAI(cache, client, api, headers, hosted_only=HOSTED_ONLY, offline=offline, allow_pickles=pickles)
    # Callers' links are fetched without any token, and without the endpoints' leave to be private.
    anonymous = Client(allow_private=settings.allow_private_urls)
    files = UrlFiles(cache, anonymous, HeaderReader(header_end, parse_header, read_header), offline=offline)
    folders = LocalFolders(_roots(settings), read_local, allow_pickles=pickles, digest=digests.sha256_of)
    schemes: dict[str, Source] = {"hf": hub, "civitai": civitai, "url": files, "file": folders}
    return Store(schemes, _lockfile(settings), cache.discard)


def build_versions(settings: Settings) -> Versions:
    """Build what knows the versions of models, by their history on the volume."""
    return Versions(HistoryFile(settings.volume / "versions" / "history.jsonl"))


def build_pairs(settings: Settings, worker: str) -> PairFolder:
    """Build the folder of pairs on the volume, as the worker of this name writes to it."""
    return PairFolder(settings.volume / "versions" / "pairs", worker, int(settings.paired_images_mb * 1e6))


def build_adapter_folders(settings: Settings) -> AdapterFolders:
    """Build the folders in which a prompt's adapters are found by name: those that `file:` may name."""
    return AdapterFolders(_roots(settings))


def _roots(settings: Settings) -> list[Path]:
    return [settings.models_yaml.resolve().parent / "models", settings.volume, *settings.allowed_model_dirs]


def _client(settings: Settings) -> Client:
    """Build the client of the operator's own endpoints, which knows each one's token."""
    endpoints = civitai_hosts(settings.civitai_endpoint, _secret(settings.civitai_token))
    try:
        return Client(
            {settings.hf_endpoint: _secret(settings.hf_token), **endpoints}, allow_private=settings.allow_private_urls
        )
    except RefusedUrl as error:
        raise SettingsError(f"HF_ENDPOINT or CIVITAI_ENDPOINT cannot be used: {error}.") from None


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


def _lockfile(settings: Settings) -> Lockfile:
    path = settings.lock_file
    # A lockfile named by MODELS_LOCK must be there; the one beside the registry may be.
    if path is None or (settings.models_lock is None and not path.is_file()):
        return Lockfile()
    try:
        return Lockfile.read(path)
    except LockfileError as error:
        raise SettingsError(f"MODELS_LOCK: {error}") from None


def build_bucket(settings: Settings) -> Bucket | None:
    """Build the operator's bucket for answers that are too large or requested there; None without one."""
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
            region=settings.bucket_region,
            usual_region=settings.aws_region,
            addressing=None if settings.bucket_addressing == "auto" else settings.bucket_addressing,
        )
    )


def bucket_opener(settings: Settings) -> Callable[[S3Config], Bucket]:
    """Return the function that opens a caller's own bucket: guarded like every address that a caller names."""

    def open_bucket(s3_config: S3Config) -> Bucket:
        config = BucketConfig(
            endpoint_url=s3_config.endpoint_url,
            name=s3_config.bucket_name,
            access_key_id=s3_config.access_id.get_secret_value(),
            secret_access_key=s3_config.access_secret.get_secret_value(),
            url_expires_s=settings.bucket_url_expires_s,
            region=s3_config.region,
            addressing=s3_config.addressing_style,
            named_by="s3Config",
        )
        return Bucket(config, BucketSender(allow_private=settings.allow_private_urls))

    return open_bucket
