"""Every switch of the worker: the only reader of the environment, read once, then frozen."""

import os
from collections.abc import MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.app.environment import PRESETS, EnvironmentFileError, load_env_file, misspelt

PROJECT_DIR = Path(__file__).resolve().parents[2]
RUNPOD_VOLUME = Path("/runpod-volume")


class SettingsError(ValueError):
    """A value of an environment variable that cannot be used; the message names it, the limit and the fix."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


class Settings(BaseSettings):
    """Names are the environment variables in lower case. Sizes, seconds and counts say their unit in the name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False)

    # Defaults of other settings, all at once
    preset: Literal["firered"] | None = None

    # The models that are served
    models_yaml: Path = PROJECT_DIR / "models.yaml"
    default_model: str = "demo"
    model_id: str | None = None
    model_revision: str | None = None
    loras: Annotated[tuple[str, ...], NoDecode] = ()
    allow_unregistered_models: bool = False
    allowed_orgs: Annotated[tuple[str, ...], NoDecode] = ()
    denied_orgs: Annotated[tuple[str, ...], NoDecode] = ()
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    denied_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    allow_pickles: bool = False
    trial_loads: Literal["unregistered", "all", "off"] = "unregistered"
    preload_models: Annotated[tuple[str, ...], NoDecode] = ()
    default_steps: int | None = Field(default=None, ge=1, le=1_000)
    default_guidance: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    use_lightning_lora: bool | None = None
    lightning_steps: Annotated[Literal[4, 8] | None, BeforeValidator(_whole)] = None
    precision_mode: Literal["bf16", "fp8", "8bit", "4bit"] | None = None

    # Folders and sources of files
    volume_dir: Path | None = None
    hf_hub_cache: Path | None = None
    hf_home: Path | None = None
    verify_cached_files: bool = True
    rehash_mb_per_second: float = Field(default=10.0, ge=0, le=100_000)
    cache_max_gb: float | None = Field(default=None, gt=0)
    models_lock: Path | None = None
    allowed_model_dirs: Annotated[tuple[Path, ...], NoDecode] = ()
    outputs_dir: Path = Path("outputs")
    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    civitai_token: SecretStr | None = None
    civitai_endpoint: str = "https://civitai.com"
    offline: bool = Field(default=False, validation_alias=AliasChoices("OFFLINE", "HF_HUB_OFFLINE"))

    # The engine
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    max_resident_models: int = Field(default=1, ge=1, le=64)
    resident_loras: int = Field(default=4, ge=0, le=64)
    warm_up: bool = True
    silence_seconds: float = Field(default=300.0, ge=1, le=86_400)
    batch_size: int = Field(default=1, ge=1, le=32)
    batch_timeout_ms: float = Field(default=50.0, ge=0, le=10_000)

    # The safety check of every image before it is answered
    safety_checker: str | None = None
    safety_threshold: float = Field(default=0.5, ge=0, le=1)
    safety_action: Literal["report", "blur", "black"] = "report"
    safety_labels: Annotated[tuple[str, ...], NoDecode] = ()

    # Limits of a job
    worker_concurrency: int = Field(default=2, ge=1, le=64)
    max_images: int = Field(default=8, ge=1, le=64)
    max_loras: int = Field(default=8, ge=0, le=64)
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    max_response_mb: float = Field(default=9.5, gt=0.01, le=100)
    result_cache_seconds: float = Field(default=600.0, ge=0, le=86_400)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=86_400)

    # Admission, and a caller's share of the worker
    max_concurrent_jobs: int = Field(default=64, ge=1, le=4_096)
    max_queued_jobs: int = Field(default=2_000, ge=0, le=100_000)
    max_queued_mb: float = Field(default=512.0, gt=0, le=1_000_000)
    max_pixel_steps: int = Field(default=0, ge=0)
    rate_limit_per_minute: int = Field(default=0, ge=0, le=1_000_000)
    quota_pixel_steps_per_day: int = Field(default=0, ge=0)

    # The HTTP server
    standalone_mode: bool = False
    api_host: str = "0.0.0.0"  # noqa: S104 -- a container's port is published by whoever runs it
    api_port: int = Field(default=8000, ge=1, le=65_535)
    api_workers: int = Field(default=1, ge=1, le=64)
    port: int | None = Field(default=None, ge=1, le=65_535)
    port_health: int | None = Field(default=None, ge=1, le=65_535)
    job_retention_seconds: float = Field(default=1_800.0, ge=0, le=604_800)
    job_retention_mb: float = Field(default=512.0, gt=0, le=1_000_000)
    webhook_secret: SecretStr | None = None
    max_body_mb: float = Field(default=120.0, gt=0.01, le=10_000)
    max_message_mb: float = Field(default=32.0, gt=0.01, le=10_000)
    max_incoming_mb: float = Field(default=512.0, gt=0.01, le=100_000)
    max_connections: int = Field(default=4_096, ge=16, le=1_000_000)
    max_connections_per_address: int = Field(default=2_048, ge=1, le=1_000_000)
    max_sockets_per_caller: int = Field(default=128, ge=1, le=1_000_000)
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    api_hostnames: Annotated[tuple[str, ...], NoDecode] = ()
    edit_model: str | None = None
    public_url: str | None = None

    # The API keys of its callers: lists of keys, or of `name:sha256` lines as `python -m worker keys new` prints them
    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    admin_keys: SecretStr | None = None

    # The worker's reports on itself
    log_format: Literal["json", "text"] | None = None
    gpu_price_per_hour: float | None = Field(default=None, ge=0, le=10_000, allow_inf_nan=False)
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_headers: SecretStr | None = None

    # Callers' links: images and model files
    allow_private_urls: bool = False

    # RunPod's queue: answers that callers read from /stream, in parts
    stream_results: bool = False

    # Set by RunPod on its machines: the address of its queue
    runpod_webhook_get_job: str | None = None

    # S3-compatible storage for results that are too large, or asked for with delivery: s3
    bucket_endpoint_url: str | None = None
    bucket_name: str | None = None
    bucket_region: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    aws_region: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    bucket_addressing: Literal["auto", "path", "virtual"] = "auto"
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_url_expires_s: int = Field(default=604_800, ge=60, le=604_800)

    @field_validator(
        *("loras", "allowed_orgs", "denied_orgs", "allowed_hosts", "denied_hosts", "preload_models", "safety_labels"),
        *("allowed_model_dirs", "cors_origins", "api_hostnames"),
        mode="before",
    )
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("bucket_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError(
                "an endpoint begins with https:// (or http://), as https://s3.eu-west-1.amazonaws.com does"
            )
        return value

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
            raise ValueError("name the address that callers use, as https://images.example.com or with a prefix behind")
        return value.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: dict[str, object]) -> dict[str, object]:
        """Return `values` on top of what their preset says. An unknown preset is refused where it is read."""
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    @property
    def default_model_id(self) -> str:
        """The model of a request that names none."""
        return self.model_id or self.default_model

    @property
    def jobs_taken(self) -> int:
        """The number of jobs taken from the queue at once: while one batch is generated, the next one gathers."""
        return max(self.worker_concurrency, 2 * self.batch_size if self.batch_size > 1 else 1)

    @property
    def logs_json(self) -> bool:
        """True if log lines are JSON: on RunPod's machines they are, where a program reads them first."""
        return (self.log_format or ("text" if self.runpod_webhook_get_job is None else "json")) == "json"

    @property
    def otel_headers(self) -> dict[str, str]:
        """The trace collector's headers, such as a key: `name=value,name=value`."""
        headers = self.otel_exporter_otlp_headers
        pairs = (pair.partition("=") for pair in headers.get_secret_value().split(",")) if headers else ()
        return {name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip()}

    @property
    def secrets(self) -> list[str]:
        """All secret values of the settings."""
        values = [getattr(self, name) for name in type(self).model_fields]
        return [value.get_secret_value() for value in values if isinstance(value, SecretStr)]

    @property
    def usage_dir(self) -> Path:
        """The folder of the usage log, a file for each worker and day."""
        return self.volume / "usage"

    @property
    def volume(self) -> Path:
        """The root that models and results may live under: the network volume, else a folder of the user's cache."""
        if self.volume_dir is not None:
            return self.volume_dir
        # RunPod also mounts a host's cached models there, read-only.
        if os.access(RUNPOD_VOLUME, os.W_OK):
            return RUNPOD_VOLUME
        return Path.home() / ".cache" / "universal-image-model-worker"

    @property
    def has_volume(self) -> bool:
        """True if the volume is one that was mounted or named, so that others find its files."""
        return self.volume_dir is not None or self.volume == RUNPOD_VOLUME

    @property
    def models_dir(self) -> Path:
        """The folder of models, in the layout of worker/store/cache.py."""
        return self.volume / "models"

    @property
    def hub_caches(self) -> tuple[Path, ...]:
        """Caches in the Hub's own layout that other programs may have filled, this worker's first version too."""
        folders = [
            self.hf_hub_cache,
            self.hf_home / "hub" if self.hf_home else None,
            self.volume / "huggingface" / "hub",
            Path.home() / ".cache" / "huggingface" / "hub",
        ]
        return tuple(dict.fromkeys(folder for folder in folders if folder is not None))

    @property
    def lock_file(self) -> Path | None:
        """The lockfile: models.lock beside the registry, another one that MODELS_LOCK names, or none with `off`."""
        if self.models_lock == Path("off"):
            return None
        return self.models_lock or self.models_yaml.with_name("models.lock")

    @property
    def listening_ports(self) -> tuple[int, ...]:
        """The HTTP server's ports: the platform's if that is set, and the one of health checks."""
        main = self.port or self.api_port
        return tuple(dict.fromkeys((main, self.port_health or main)))

    def without_response_limit(self) -> "Settings":
        """Return these settings for files as results: no platform limits an answer."""
        return self.model_copy(update={"max_response_mb": 1e6})

    @property
    def has_keys(self) -> bool:
        """True if the HTTP server asks for an API key."""
        return self.api_keys is not None or self.api_keys_file is not None

    def warnings(self) -> list[str]:
        """Return one sentence for each switch that loosens a safe default; printed at start."""
        sentences = self._loosened()
        for name, endpoint, token in (
            ("HF", self.hf_endpoint, self.hf_token),
            ("CIVITAI", self.civitai_endpoint, self.civitai_token),
        ):
            if token is not None and not endpoint.startswith("https://"):
                sentences.append(
                    f"{name}_ENDPOINT does not speak https: {name}_TOKEN goes over the network unencrypted."
                )
        if len(self.preload_models) >= self.max_resident_models and self.preload_models:
            sentences.append(
                f"PRELOAD_MODELS and the default model are more than MAX_RESIDENT_MODELS ({self.max_resident_models}): "
                "the first ones are evicted again before a job comes."
            )
        partial = [self.bucket_endpoint_url, self.bucket_name, self.bucket_access_key_id, self.bucket_secret_access_key]
        if any(partial) and not all(partial):
            sentences.append(
                "S3 is off: set all of BUCKET_ENDPOINT_URL, BUCKET_NAME, BUCKET_ACCESS_KEY_ID and "
                "BUCKET_SECRET_ACCESS_KEY."
            )
        sentences += misspelt(os.environ, known_variables())
        fleet = [name for name in tier_overrides() if name.endswith(("_MAX_CONTAINERS", "_SCALEDOWN"))]
        if fleet:
            sentences.append(
                f"{' and '.join(sorted(fleet))} set how a platform scales, and this is one worker, which does not read "
                "them; set them where containers are started and stopped."
            )
        return sentences

    def _loosened(self) -> list[str]:
        """Return one sentence for each switch that lets more models or addresses in."""
        sentences = []
        if self.allow_unregistered_models:
            allowed = ", ".join((*self.allowed_orgs, *self.allowed_hosts)) or "any organisation, any public host"
            sentences.append(
                f"ALLOW_UNREGISTERED_MODELS is on: callers may load models that models.yaml lacks ({allowed})."
            )
        if self.allow_pickles:
            sentences.append(
                "ALLOW_PICKLES is on: pickles of plain tensors are read, in a process of their own, and converted."
            )
        if self.trial_loads == "off" and self.allow_unregistered_models:
            sentences.append("TRIAL_LOADS is off: the configs of any caller's model may hold the engine for minutes.")
        if not self.verify_cached_files:
            sentences.append("VERIFY_CACHED_FILES is off: files in other tools' caches are trusted by their size.")
        if self.allow_private_urls:
            sentences.append("ALLOW_PRIVATE_URLS is on: images and model files may be fetched from private addresses.")
        return sentences

    def server_warnings(self) -> list[str]:
        """Return the same for the HTTP server alone."""
        sentences = []
        if not self.has_keys and not _is_loopback(self.api_host):
            sentences.append(
                f"API_KEYS is not set and API_HOST is {self.api_host}: whoever reaches this port may use the worker. "
                "Set API_KEYS or API_KEYS_FILE, or API_HOST=127.0.0.1."
            )
        if (self.rate_limit_per_minute or self.quota_pixel_steps_per_day) and not self.has_keys:
            sentences.append(
                "RATE_LIMIT_PER_MINUTE and QUOTA_PIXEL_STEPS_PER_DAY are of API keys: without API_KEYS or "
                "API_KEYS_FILE nobody is held to them."
            )
        if "*" in self.api_hostnames and not self.has_keys:
            sentences.append(
                "API_HOSTNAMES is * and API_KEYS is not set: any web page may use this worker through its readers' "
                "browsers, by a name that it gives this worker's address."
            )
        if "*" in self.cors_origins:
            sentences.append("CORS_ORIGINS is *: any web page may use this worker through its readers' browsers.")
        return sentences


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings() -> Settings:
    """Read the environment and `.env` once. Raises SettingsError naming the variable."""
    try:
        load_env_file(Path(".env"), os.environ)
        return Settings()
    except EnvironmentFileError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        raise SettingsError(
            f"{name}: {first['msg'].removeprefix('Value error, ')}; {first.get('input')!r} was set."
        ) from None


def process_environment() -> MutableMapping[str, str]:
    """Return the environment that libraries read: which GPUs they see stands there."""
    return os.environ


def known_variables() -> set[str]:
    """Return the names of all environment variables that are settings."""
    names = {name.upper() for name in Settings.model_fields}
    aliases = [field.validation_alias for field in Settings.model_fields.values()]
    return names.union(*(map(str, alias.choices) for alias in aliases if isinstance(alias, AliasChoices)))


def tier_overrides() -> dict[str, str]:
    """Return the DIFFUSERS_<TIER>_… variables, which the registry reads by name."""
    return {name: value for name, value in os.environ.items() if name.startswith("DIFFUSERS_")}


def forbid_unsafe_loading() -> None:
    """Take away the variable with which torch would read any pickle, whatever its caller asked for."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def prepare_sdk_environment() -> None:
    """Set RunPod's log level before its SDK reads it: the default is DEBUG, with base64 in every other line."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
