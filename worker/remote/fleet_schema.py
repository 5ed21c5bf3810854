"""The schema of fleet.yaml: the workers and endpoints behind a gateway."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from worker.core.model import Parsed

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
VARIABLE = r"^[A-Z_][A-Z0-9_]{0,127}$"
MODEL_NAME = r"^[^\s]{1,256}$"
# Those that draw for money at an address of their own; image_client's others are replicas of other kinds.
Provider = Literal["replicate", "stability", "openai", "huggingface", "fal", "mock"]
# What is said of a provider, and what is said of a worker and its device.
_OF_PROVIDERS = ("provider_models", "usd_per_image", "usd_per_megapixel", "max_usd_per_image", "max_usd_per_day")
_OF_WORKERS = (
    *("runpod", "runpod_load_balancer", "tier", "vram_gb", "volume", "models", "resident_models", "attempt_s"),
    *("cold_start_s", "usd_per_hour", "speed"),
)


class ReplicaEntry(Parsed):
    """One replica as fleet.yaml writes it. `key` names the environment variable that holds its API key."""

    url: str | None = Field(default=None, pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$", max_length=512)
    runpod: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")  # a queue endpoint's id
    runpod_load_balancer: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")  # a load balancer's
    provider: Provider | None = None  # a hosted one, asked through image_client
    key: str | None = Field(default=None, pattern=VARIABLE)
    tier: str | None = None
    vram_gb: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    volume: str | None = Field(default=None, pattern=NAME)
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    concurrency: int = Field(default=8, ge=1, le=1_000)
    resident_models: int = Field(default=1, ge=1, le=64)
    attempt_s: float | None = Field(default=None, ge=5, le=86_400, allow_inf_nan=False)
    cold_start_s: float = Field(default=0.0, ge=0, le=3_600, allow_inf_nan=False)
    usd_per_hour: float = Field(default=0.0, ge=0, le=10_000, allow_inf_nan=False)
    speed: float = Field(default=1.0, gt=0, le=1_000, allow_inf_nan=False)
    # The provider's words for models of models.yaml, what it asks, and what it may be paid at most.
    provider_models: Mapping[str, Annotated[str, Field(pattern=MODEL_NAME)]] = Field(default_factory=dict)
    usd_per_image: float = Field(default=0.0, ge=0, le=1_000, allow_inf_nan=False)
    usd_per_megapixel: float = Field(default=0.0, ge=0, le=1_000, allow_inf_nan=False)
    max_usd_per_image: float | None = Field(default=None, ge=0, le=1_000, allow_inf_nan=False)
    max_usd_per_day: float | None = Field(default=None, ge=0, le=1_000_000, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_place(self) -> "ReplicaEntry":
        if self.provider is not None:
            return self._of_a_provider(self.provider)
        if useless := [name for name in _OF_PROVIDERS if name in self.model_fields_set]:
            raise ValueError(f"says {useless[0]}, which is of a provider: add provider, or remove it")
        places = [name for name in ("url", "runpod", "runpod_load_balancer") if getattr(self, name) is not None]
        if not places or (len(places) > 1 and places != ["url", "runpod"]):
            raise ValueError(
                "must have one of url, runpod, runpod_load_balancer and provider (url beside runpod is its API)"
            )
        return self

    def _of_a_provider(self, provider: str) -> "ReplicaEntry":
        if useless := [name for name in _OF_WORKERS if name in self.model_fields_set]:
            raise ValueError(f"says {useless[0]}, which is of a worker and not of provider {provider}: remove it")
        if not self.provider_models:
            raise ValueError(f"must have provider_models: what {provider} calls models of models.yaml, as id: name")
        if not self.model_fields_set & {"usd_per_image", "usd_per_megapixel"}:
            raise ValueError(f"must have usd_per_image or usd_per_megapixel: what {provider} asks")
        if self.max_usd_per_image is None or self.max_usd_per_day is None:
            raise ValueError(f"must have max_usd_per_image and max_usd_per_day: what {provider} may be paid at most")
        if self.usd_per_image + self.usd_per_megapixel > self.max_usd_per_image:
            raise ValueError(
                "has a price above max_usd_per_image, so that nothing would be sent there: raise max_usd_per_image"
            )
        return self


class FleetFile(Parsed):
    """The whole file."""

    replicas: dict[Annotated[str, Field(pattern=NAME)], ReplicaEntry] = Field(min_length=1)
