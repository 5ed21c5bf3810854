"""Every switch of the worker: the only reader of the environment, read once, then frozen."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_DIR = Path(__file__).resolve().parent.parent
RUNPOD_VOLUME = Path("/runpod-volume")


class SettingsError(ValueError):
    """An environment variable has a value that cannot be used; the message names it, the limit and the fix."""


class Settings(BaseSettings):
    """Names are the environment variables in lower case. Sizes, seconds and counts say their unit in the name."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False)

    # What is served
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
    preload_models: Annotated[tuple[str, ...], NoDecode] = ()

    # Where bytes live
    volume_dir: Path | None = None
    hf_hub_cache: Path | None = None
    hf_home: Path | None = None
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

    # Limits of a job
    worker_concurrency: int = Field(default=2, ge=1, le=64)
    max_images: int = Field(default=8, ge=1, le=64)
    max_loras: int = Field(default=8, ge=0, le=64)
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    max_response_mb: float = Field(default=9.5, gt=0.01, le=100)
    result_cache_seconds: float = Field(default=600.0, ge=0, le=86_400)

    # What callers link to: pictures and model files
    allow_private_urls: bool = False

    # Set by RunPod on its machines: where jobs come from
    runpod_webhook_get_job: str | None = None

    # S3-compatible storage for results that are too large, or asked for with delivery: s3
    bucket_endpoint_url: str | None = None
    bucket_name: str | None = None
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_url_expires_s: int = Field(default=604_800, ge=60, le=604_800)

    @field_validator(
        *("loras", "allowed_orgs", "denied_orgs", "allowed_hosts", "denied_hosts", "preload_models"),
        "allowed_model_dirs",
        mode="before",
    )
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def default_model_id(self) -> str:
        """The model of a request that names none."""
        return self.model_id or self.default_model

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
    def models_dir(self) -> Path:
        """Where models are kept, in the layout of worker/store/cache.py."""
        return self.volume / "models"

    @property
    def hub_caches(self) -> tuple[Path, ...]:
        """Caches in the Hub's own layout that other programs may have filled, this worker's first version too."""
        found = [
            self.hf_hub_cache,
            self.hf_home / "hub" if self.hf_home else None,
            self.volume / "huggingface" / "hub",
            Path.home() / ".cache" / "huggingface" / "hub",
        ]
        return tuple(dict.fromkeys(folder for folder in found if folder is not None))

    @property
    def lock_file(self) -> Path | None:
        """The lockfile: models.lock beside the registry, another one that MODELS_LOCK names, or none with `off`."""
        if self.models_lock == Path("off"):
            return None
        return self.models_lock or self.models_yaml.with_name("models.lock")

    def without_response_limit(self) -> "Settings":
        """These settings where pictures go to files, and no platform limits an answer."""
        return self.model_copy(update={"max_response_mb": 1e6})

    def warnings(self) -> list[str]:
        """One sentence for each switch that loosens a safe default; printed at start."""
        found = []
        if self.allow_unregistered_models:
            places = ", ".join((*self.allowed_orgs, *self.allowed_hosts)) or "any organisation, any public host"
            found.append(f"ALLOW_UNREGISTERED_MODELS is on: callers may load models that models.yaml lacks ({places}).")
        if self.allow_pickles:
            found.append(
                "ALLOW_PICKLES is on: pickles of plain tensors are read, in a process of their own, and converted."
            )
        if self.allow_private_urls:
            found.append("ALLOW_PRIVATE_URLS is on: pictures and model files may be fetched from private addresses.")
        for name, endpoint, token in (
            ("HF", self.hf_endpoint, self.hf_token),
            ("CIVITAI", self.civitai_endpoint, self.civitai_token),
        ):
            if token is not None and not endpoint.startswith("https://"):
                found.append(f"{name}_ENDPOINT does not speak https: {name}_TOKEN goes over the network unencrypted.")
        if len(self.preload_models) >= self.max_resident_models and self.preload_models:
            found.append(
                f"PRELOAD_MODELS and the default model are more than MAX_RESIDENT_MODELS ({self.max_resident_models}): "
                "the first ones are evicted again before a job comes."
            )
        partial = [self.bucket_endpoint_url, self.bucket_name, self.bucket_access_key_id, self.bucket_secret_access_key]
        if any(partial) and not all(partial):
            found.append(
                "S3 is off: set all of BUCKET_ENDPOINT_URL, BUCKET_NAME, BUCKET_ACCESS_KEY_ID and "
                "BUCKET_SECRET_ACCESS_KEY."
            )
        return found


def read_settings() -> Settings:
    """Read the environment once. Raises SettingsError naming the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        raise SettingsError(f"{name}: {first['msg']}; {first.get('input')!r} was set.") from None


def tier_overrides() -> dict[str, str]:
    """The DIFFUSERS_<TIER>_… variables, which the registry reads by name."""
    return {name: value for name, value in os.environ.items() if name.startswith("DIFFUSERS_")}


def forbid_unsafe_loading() -> None:
    """Take away the variable with which torch would read any pickle, whatever its caller asked for."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def prepare_sdk_environment() -> None:
    """What RunPod's SDK reads at import: its default log level is DEBUG, with base64 in every other line."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
