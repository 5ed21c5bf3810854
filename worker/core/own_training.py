"""How one model is best trained, as its entry in models.yaml has it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Targets = Literal["attention", "linear", "all"]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=256)]
BatchSize = Annotated[int, Field(ge=1, le=64)]
SampleCaptions = Annotated[int, Field(ge=0, le=8)]


class OwnTraining(BaseModel):
    """Options that a training of this model has, unless it says others. `learning_rate` is that of AdamW."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    learning_rate: LearningRate | None = None
    batch_size: BatchSize | None = None
    rank: Rank | None = None
    targets: Targets | None = None
    sample_captions: SampleCaptions | None = None
