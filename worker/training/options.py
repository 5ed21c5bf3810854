"""The options of a training, checked before anything is read or loaded."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.core.model import DType

Method = Literal["lora", "dora", "loha", "lokr"]
Targets = Literal["attention", "linear", "all"]

MAX_STEPS = 100_000
MAX_RANK = 256


class TrainingOptions(BaseModel):
    """The options of one training. They and the dataset determine its weights to the bit on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "lora"
    """How weights are changed: LoRA, DoRA (LoRA with magnitudes), LoHa or LoKr (products of small matrices)."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 16
    targets: Targets = "linear"
    """The layers that learn: of attention alone, every linear layer of the blocks, or convolutions too."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1_000
    batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 10
    decay: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resolution: Annotated[int, Field(ge=64, le=2048)] | None = None
    """Side of a square with as many pixels as each image is given; the model's native size when None."""
    trigger: Annotated[str, Field(max_length=100)] = ""
    """A word that every caption begins with."""
    caption: Annotated[str, Field(max_length=1_000)] | None = None
    """The caption of images that have none of their own."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the lessons whose caption is left out, so that guidance still works."""
    flip: bool = False
    """Learn every image mirrored, too."""
    min_snr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The gamma of min-SNR weighting (Hang et al., 2023), for models of diffusion noise."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the images that are not learnt: the loss on them tells learning by heart from learning."""
    save_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 250
    """Steps between checkpoints; each has its file and its samples."""
    samples: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=2_000)], ...], Field(max_length=8)] = ()
    """Prompts that are drawn at every checkpoint, by the serving engine with the very file of that checkpoint."""
    dtype: DType | None = None
    """The dtype of the frozen weights; the model's own when None. What learns is float32."""
