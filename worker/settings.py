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
    preload_models: Annotated[tuple[str, ...], NoDecode] = ()

    # Where bytes live
    volume_dir: Path | None = None
    hf_hub_cache: Path | None = None
    allowed_model_dirs: Annotated[tuple[Path, ...], NoDecode] = ()
    outputs_dir: Path = Path("outputs")
    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    offline: bool = Field(default=False, validation_alias=AliasChoices("OFFLINE", "HF_HUB_OFFLINE"))

    # The engine
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    max_resident_models: int = Field(default=1, ge=1, le=64)
    warm_up: bool = True

    # Limits of a job
    worker_concurrency: int = Field(default=2, ge=1, le=64)
    max_images: int = Field(default=8, ge=1, le=64)
    max_loras: int = Field(default=8, ge=0, le=64)
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    max_response_mb: float = Field(default=9.5, gt=0.01, le=100)
    result_cache_seconds: float = Field(default=600.0, ge=0, le=86_400)

    # Input pictures
    allow_private_urls: bool = False

    # Set by RunPod on its machines: where jobs come from
    runpod_webhook_get_job: str | None = None

    # S3-compatible storage for results that are too large, or asked for with delivery: s3
    bucket_endpoint_url: str | None = None
    bucket_name: str | None = None
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_url_expires_s: int = Field(default=604_800, ge=60, le=604_800)

    @field_validator("loras", "allowed_orgs", "denied_orgs", "preload_models", "allowed_model_dirs", mode="before")
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
    def hub_cache(self) -> Path:
        """Where downloads from the Hub go, in the Hub's own cache layout."""
        return self.hf_hub_cache or self.volume / "huggingface" / "hub"

    def without_response_limit(self) -> "Settings":
        """These settings where pictures go to files, and no platform limits an answer."""
        return self.model_copy(update={"max_response_mb": 1e6})

    def warnings(self) -> list[str]:
        """One sentence for each switch that loosens a safe default; printed at start."""
        found = []
        if self.allow_unregistered_models:
            orgs = ", ".join(self.allowed_orgs) or "any organisation"
            found.append(f"ALLOW_UNREGISTERED_MODELS is on: callers may load models that models.yaml lacks ({orgs}).")
        if self.allow_private_urls:
            found.append("ALLOW_PRIVATE_URLS is on: input pictures may be fetched from private addresses.")
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


def prepare_sdk_environment() -> None:
    """What RunPod's SDK reads at import: its default log level is DEBUG, with base64 in every other line."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
