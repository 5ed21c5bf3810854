"""The schema of fleet.yaml: the workers and endpoints behind a gateway."""

from typing import Annotated

from pydantic import Field, model_validator

from worker.core.model import Parsed

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
VARIABLE = r"^[A-Z_][A-Z0-9_]{0,127}$"


class ReplicaEntry(Parsed):
    """One replica as fleet.yaml writes it. `key` names the environment variable that holds its API key."""

    url: str | None = Field(default=None, pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$", max_length=512)
    runpod: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")  # a queue endpoint's id
    runpod_load_balancer: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")  # a load balancer's
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

    @model_validator(mode="after")
    def _one_place(self) -> "ReplicaEntry":
        places = [name for name in ("url", "runpod", "runpod_load_balancer") if getattr(self, name) is not None]
        if not places or (len(places) > 1 and places != ["url", "runpod"]):
            raise ValueError("must have one of url, runpod and runpod_load_balancer (url beside runpod is its API)")
        return self


class FleetFile(Parsed):
    """The whole file."""

    replicas: dict[Annotated[str, Field(pattern=NAME)], ReplicaEntry] = Field(min_length=1)
