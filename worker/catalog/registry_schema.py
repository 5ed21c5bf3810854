"""The schema of models.yaml: its keys, and the values that they may have."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from worker.core.device import DeviceMap
from worker.core.model import Lightning, LoraSpec, OwnUpscaler, Parsed, Task, Tier
from worker.core.own_training import OwnTraining
from worker.core.precision import DType, Precision
from worker.core.quality import Quality
from worker.core.request import MAX_SEED
from worker.core.version import CANDIDATE, STABLE, VERSION_NAME

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@#+/-]{0,255}$"


_COMPONENT = r"^[a-z][a-z0-9_]{0,63}$"
_GPUS = 64


def _device_map(value: object) -> object:
    """Check what is one of two kinds of values, whose messages would speak of both."""
    is_map = isinstance(value, dict) and len(value) > 0 and all(map(_is_placed, value.items()))
    if value is None or value == "balanced" or is_map:
        return value
    text = f"Input should be balanced, or a mapping of components to numbers of GPUs from 0 to {_GPUS - 1}"
    raise PydanticCustomError("device_map", text)


def _is_placed(item: tuple[object, object]) -> bool:
    name, number = item
    return bool(re.match(_COMPONENT, str(name))) and type(number) is int and 0 <= number < _GPUS


class EntryDefaults(Parsed):
    """Defaults for every model that says nothing else."""

    dtype: DType | None = None
    tier: str | None = None


class Entry(Parsed):
    """One model as models.yaml writes it."""

    source: str | None = Field(default=None, min_length=1, max_length=1_024)
    revision: str | None = Field(default=None, min_length=1, max_length=128)
    aliases: tuple[Annotated[str, Field(pattern=NAME)], ...] = ()
    description: str | None = Field(default=None, max_length=1_000)
    tasks: tuple[Task, ...] = ()
    architecture: str | None = None
    pipeline: str | None = Field(default=None, pattern=r"^[A-Z][A-Za-z0-9]*Pipeline[A-Za-z0-9]*$")
    config: str | None = Field(default=None, min_length=1)
    subjects: str | None = Field(default=None, min_length=1)
    tier: str | None = None
    dtype: DType | None = None
    precision: Precision | None = None
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    base: str | None = Field(default=None, min_length=1, max_length=1_024)
    vae: str | None = Field(default=None, min_length=1, max_length=1_024)
    components: dict[Annotated[str, Field(pattern=_COMPONENT)], str] = Field(default_factory=dict)
    fallback: str | None = Field(default=None, min_length=1, max_length=256)
    min_vram_gb: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    licence: str | None = Field(default=None, min_length=1, max_length=128)
    device_map: Annotated[DeviceMap | None, BeforeValidator(_device_map)] = None
    context_parallel: int | None = Field(default=None, ge=2, le=8)
    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    limits: dict[str, float] = Field(default_factory=dict)
    loras: tuple[LoraSpec, ...] = ()
    lightning: Lightning | None = None
    upscale: OwnUpscaler | None = None
    quality: Quality | None = None
    refiner: str | None = Field(default=None, min_length=1, max_length=256)
    training: OwnTraining | None = None
    split: dict[
        Annotated[str, Field(pattern=rf"^({VERSION_NAME}|{STABLE}|{CANDIDATE})$")],
        Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)],
    ] = Field(default_factory=dict, max_length=8)
    paired: float = Field(default=0, ge=0, le=100, allow_inf_nan=False)
    golden: dict[Annotated[str, Field(min_length=1, max_length=8_000)], Annotated[int, Field(ge=0, le=MAX_SEED)]] = (
        Field(default_factory=dict, max_length=16)
    )

    @property
    def replaced_parts(self) -> tuple[str, ...]:
        """The components that come from elsewhere, and are not asked of the model's own source."""
        return tuple(sorted({*self.components, *(["vae"] if self.vae else [])}))


class RegistryFile(Parsed):
    """The whole file; its models are read one by one, so that a mistake has its own line."""

    defaults: EntryDefaults = Field(default_factory=EntryDefaults)
    tiers: dict[str, Tier] = Field(default_factory=dict)
    models: dict[str, JsonValue] = Field(min_length=1)
