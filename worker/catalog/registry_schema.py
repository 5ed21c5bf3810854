"""The schema of models.yaml: its keys, and the values that they may have."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from worker.core.model import DType, Lightning, LoraSpec, OwnUpscaler, Parsed, Task, Tier
from worker.core.quality import Quality

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@#+/-]{0,255}$"


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
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    base: str | None = Field(default=None, min_length=1, max_length=1_024)
    vae: str | None = Field(default=None, min_length=1, max_length=1_024)
    components: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], str] = Field(default_factory=dict)
    fallback: str | None = Field(default=None, min_length=1, max_length=256)
    min_vram_gb: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    limits: dict[str, float] = Field(default_factory=dict)
    loras: tuple[LoraSpec, ...] = ()
    lightning: Lightning | None = None
    upscale: OwnUpscaler | None = None
    quality: Quality | None = None
    refiner: str | None = Field(default=None, min_length=1, max_length=256)

    @property
    def replaced_parts(self) -> tuple[str, ...]:
        """The components that come from elsewhere, and are not asked of the model's own source."""
        return tuple(sorted({*self.components, *(["vae"] if self.vae else [])}))


class RegistryFile(Parsed):
    """The whole file; its models are read one by one, so that a mistake has its own line."""

    defaults: EntryDefaults = Field(default_factory=EntryDefaults)
    tiers: dict[str, Tier] = Field(default_factory=dict)
    models: dict[str, JsonValue] = Field(min_length=1)
