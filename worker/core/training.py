"""What is asked of a training, checked before anything is read or loaded, and what comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.model import Parsed
from worker.core.own_training import BatchSize, LearningRate, OwnTraining, Rank, SampleCaptions, Targets

Method = Literal["lora", "dora", "loha", "lokr", "embedding", "full"]
TrainedField = Literal["loras", "embeddings", "model"]
OptimizerName = Literal["adamw", "lion", "prodigy", "adamw8bit"]
TrainerName = Literal["worker", "ai-toolkit"]
MaskKind = Literal["files", "alpha", "off"]
Crop = Literal["center", "random", "none"]

Held = Literal["bf16", "fp16", "fp32", "fp8", "int8", "8bit", "4bit"]  # a precision; not the one that fits by chance

MAX_STEPS = 100_000
MAX_REPEATS = 1_000
MAX_SENT = 2_000  # images of one request
# Options that change no weight of any step.
LOOKED_AT = frozenset({"samples", "sample_captions", "save_every", "patience", "tensorboard"})
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"

WORDS = frozenset({"samples", "caption", "template", "class_prompt", "like"})  # options in the caller's own words
TrainingAction = Literal["train", "train_plan"]
Control = Literal["look", "sample", "save", "stop"]
WISH_FILE = "wish"


class UntrainableClass(UnsupportedModel):
    """A pipeline's class that this worker's own trainer cannot train; another trainer may."""


class TrainingOptions(BaseModel):
    """The options of one training. They and the dataset determine its weights to the bit on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _rate_of_its_own(cls, data: Any) -> Any:
        """Let Prodigy begin at 1, the share of what it finds, where no learning rate is said, and whole models low."""
        if isinstance(data, dict) and data.get("optimizer") == "prodigy":
            return {"learning_rate": 1.0, **data}
        if isinstance(data, dict) and data.get("method") == "full":
            return {"learning_rate": 1e-5, **data}
        return data

    trainer: TrainerName | None = None
    """Which trainer learns: this worker's, or ai-toolkit where the operator has set it up. Without it this worker's,
    and ai-toolkit for classes that it cannot train.
    """
    method: Method = "lora"
    """How weights are changed: LoRA, DoRA (LoRA with magnitudes), LoHa or LoKr (products of small matrices).

    `embedding` changes none: it learns the vectors of the word `trigger` (textual inversion). `full` has no adapter:
    every weight of the denoiser is learnt.
    """
    vectors: Annotated[int, Field(ge=1, le=32)] = 1
    """How many vectors the word of an embedding has."""
    like: Annotated[str, Field(max_length=100)] | None = None
    """A word or a few, that an embedding begins as; without it the mean of all."""
    text_encoder: bool = False
    """Whether an adapter learns in the CLIP text encoders, too."""
    rank: Rank = 16
    targets: Targets = "linear"
    """The layers that learn: of attention alone, every linear layer of the blocks, or convolutions too."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1_000
    batch_size: BatchSize = 1
    accumulation: Annotated[int, Field(ge=1, le=64)] = 1
    """Batches of a step: their gradients are added up, so that it learns from more images than memory has room for."""
    learning_rate: LearningRate = 1e-4
    lora_plus: Annotated[float, Field(gt=1, le=64)] | None = None
    """How many times the learning rate of its A the B of an adapter has, such as 16 (LoRA+, Hayou et al., 2024)."""
    optimizer: OptimizerName = "adamw"
    """AdamW; Lion, which wants a third to a tenth of its learning rate; Prodigy, which finds it and wants 1; AdamW with
    its state in 8 bits.
    """
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay of a running mean of what is learnt, such as 0.99, which is delivered in the place of the last step."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 10
    decay: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resolution: Annotated[int, Field(ge=64, le=2048)] | None = None
    """Side of a square with as many pixels as each image is given; the model's native size when None."""
    trigger: Annotated[str, Field(max_length=100)] = ""
    """A word that every caption begins with, unless it holds it."""
    caption: Annotated[str, Field(max_length=1_000)] | None = None
    """The caption of images that have none of their own."""
    template: Annotated[str, Field(max_length=1_000)] | None = None
    """How every caption is written, with `{caption}`, `{trigger}` and `{name}`, the name of the image's file."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the lessons whose caption is left out, so that guidance still works."""
    flip: bool = False
    """Learn every image mirrored, too."""
    crop: Crop = "center"
    """What of an image is learnt, where its shape is not that of the size: its middle; `crops` places of it at random,
    the same in every round; or all of it, at a size of its own shape."""
    crops: Annotated[int, Field(ge=1, le=16)] = 4
    """How many places of each image `random` has."""
    mask: MaskKind = "files"
    """Where masks are, of what shall be learnt in an image: files by its name, else its transparency, or nowhere."""
    mask_floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The weight of the loss outside a mask, of that inside."""
    min_snr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The gamma of min-SNR weighting (Hang et al., 2023), for models of diffusion noise."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the images that are not learnt: the loss on them tells learning by heart from learning."""
    patience: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """End once so many checkpoints in a row had no lower loss on the images held out; the best one is delivered."""
    save_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 250
    """Steps between checkpoints; each has its file and its samples."""
    class_prompt: Annotated[str, Field(max_length=1_000)] | None = None
    """What the subject is one of (DreamBooth): images that the model alone draws of it are learnt beside the subject,
    so that the class stays what it was."""
    class_images: Annotated[int, Field(ge=1, le=1_000)] = 50
    class_weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The weight of the loss on images of the class."""
    samples: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=2_000)], ...], Field(max_length=8)] = ()
    """Prompts that are drawn at every checkpoint, by the serving engine with the very file of that checkpoint."""
    sample_captions: SampleCaptions = 0
    """How many captions of the data are drawn so where `samples` has none: of images held out first, each once."""
    tensorboard: bool = False
    """Write files for TensorBoard, too: losses, learning rate, samples."""
    precision: Held | None = None
    """How the frozen weights are held, in fewer bits or in a dtype; whole and in the model's own when None.

    What learns is float32. Samples are generated in it, too.
    """

    @property
    def images_a_step(self) -> int:
        """How many images a step learns from."""
        return self.batch_size * self.accumulation

    @property
    def field(self) -> TrainedField:
        """The field of a request that takes what was trained."""
        return "embeddings" if self.method == "embedding" else "model" if self.method == "full" else "loras"

    def unsaid(self, own: OwnTraining | None) -> dict[str, float | str]:
        """Return a model's own options: those that this training does not say. Its learning rate is AdamW's."""
        others = () if self.optimizer.startswith("adamw") else ("learning_rate",)
        row: dict[str, float | str] = {} if own is None else own.model_dump(exclude_none=True, exclude={*others})
        return {name: value for name, value in row.items() if name not in self.model_fields_set}

    def of_model(self, own: OwnTraining | None) -> "TrainingOptions":
        """Return these options, with the model's own where nothing is said."""
        return self.model_copy(update=self.unsaid(own))


# An option, whether a training reads it, and what it is for.
_READ: tuple[tuple[str, Callable[[TrainingOptions], bool], str], ...] = (
    ("rank", lambda options: options.field == "loras", "is the size of an adapter, and method {method} has none"),
    ("targets", lambda options: options.field == "loras", "are the layers of an adapter, and method {method} has none"),
    (
        "lora_plus",
        lambda options: options.method in ("lora", "dora") and options.optimizer != "prodigy",
        "is for methods lora and dora with a learning rate of their own, and this is {method} with {optimizer}",
    ),
    ("vectors", lambda options: options.method == "embedding", "is for method embedding, and the method is {method}"),
    ("like", lambda options: options.method == "embedding", "is for method embedding, and the method is {method}"),
    ("crops", lambda options: options.crop == "random", "is for crop random, and the crop is {crop}"),
    ("mask_floor", lambda options: options.mask != "off", "is for masks, and mask is off"),
    ("class_images", lambda options: options.class_prompt is not None, "is for class_prompt, which is not there"),
    ("class_weight", lambda options: options.class_prompt is not None, "is for class_prompt, which is not there"),
    ("sample_captions", lambda options: not options.samples, "is for a training without samples"),
)


def check_read(options: TrainingOptions) -> None:
    """Raise InvalidRequest for an option that was said, and is for another kind of training than this one."""
    for name, is_read, purpose in _READ:
        if name in options.model_fields_set and not is_read(options):
            reason = purpose.format(method=options.method, crop=options.crop, optimizer=options.optimizer)
            raise InvalidRequest(f"{name} {reason}; leave {name} out.", field=name)
    if options.method == "embedding" and not options.trigger:
        raise InvalidRequest(
            "trigger is the word that method embedding learns; send one, as <mascot>.", field="trigger"
        )


class SentExample(Parsed):
    """An image to learn, as base64, a data: URI or an https URL, with its caption.

    Its mask, and the source that a model which edits shall make it of, are in the same forms.
    """

    image: str = Field(min_length=1, repr=False)
    source: str | None = Field(default=None, min_length=1, repr=False)
    mask: str | None = Field(default=None, min_length=1, repr=False)
    caption: Annotated[str, Field(max_length=2_000)] = ""
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = 1
    """How often it counts in a round of all."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what says nothing: trainings that were begun without it go on."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if name != "repeats" or value != 1}


class TrainingData(Parsed):
    """The images of a training: exactly one of these says where they are."""

    images: tuple[SentExample, ...] = Field(default=(), strict=False)
    archive: str | None = Field(default=None, repr=False)
    """A ZIP file, as base64, a data: URI or an https URL."""
    dataset: str | None = None
    """A public dataset of the Hub: org/name, or org/name@revision."""
    folder: str | None = None
    """A folder or a ZIP file below the volume's `datasets`."""


class TrainingRequest(Parsed):
    """A training, or the plan of one. `name` is that of its folder and its file; without one it follows from the rest.

    It ends with a checkpoint after `minutes`, or once it has cost `max_usd`, and the same request goes on from there.
    With `candidate` a finished LoRA becomes the version @candidate of its model.
    """

    action: TrainingAction
    data: TrainingData
    options: TrainingOptions
    model: str | None = Field(default=None, min_length=1, max_length=512)
    name: str | None = Field(default=None, pattern=NAME)
    candidate: bool = False
    minutes: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False, strict=False)] | None = None
    max_usd: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False, strict=False)] | None = None


class TrainingControl(Parsed):
    """A look at a training by its name, or a wish for it, fulfilled between two steps.

    `sample` keeps a checkpoint and draws its samples, `save` keeps one, `stop` does the former and ends the job. The
    answer has samples of steps after `samples_after`.
    """

    name: str = Field(pattern=NAME)
    control: Control = "look"
    samples_after: Annotated[int, Field(ge=-1, le=MAX_STEPS)] = -1


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a dataset holds. `smallest` and `largest` are sides in pixels; a fault is a sentence.

    `repeated` are the images of a round, each as often as it counts.
    """

    digest: str
    images: int
    repeated: int
    captions: int
    masks: int
    sources: int
    smallest: int
    largest: int
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a training came to in this stretch. `seconds` are the device's; `file` has the adapter of step `delivered`.

    `is_done` is True after the last step, and where `patience` ended it; `note` is a sentence on that.
    """

    file: Path
    steps: int
    delivered: int
    is_done: bool
    resumed_at: int
    loss: float | None
    held_out_loss: float | None
    dataset: DatasetFacts
    seconds: float
    beside: tuple[Path, ...] = ()
    """The other files that came of it: the adapter in kohya's spelling, the losses as an image, the last samples."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class TrainedFile:
    """A file of a training: its path below the volume, and its URL where there is a bucket."""

    path: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The answer to a training. Requests have the adapter in `field` by `name` from now on, and as a `version`.

    It is that of step `delivered`. `is_done` is False where it stopped before its end, and `next` says how to go on.
    """

    name: str
    model: str
    field: TrainedField
    trigger: str
    steps: int
    of: int
    delivered: int
    is_done: bool
    resumed_at: int
    loss: float | None
    held_out_loss: float | None
    dataset: DatasetFacts
    files: tuple[TrainedFile, ...]
    gpu_seconds: float
    cost_usd: float | None = None
    version: str | None = None
    next: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on the device: the model, what learns with its gradients and the optimizer's state, and activations."""

    model: int
    learnt: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.model + self.learnt + self.activations


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a training would take. `seconds` and `usd` are None until this model was trained here, or served.

    `timed_by` says which: by serving's pace it is an estimate.

    `sizes` are the widths and heights that images are learnt at, and how many are of each. `licence` is the model's, as
    its page or models.yaml names it; None where it is not known.
    """

    name: str
    model: str
    dataset: DatasetFacts
    sizes: Mapping[tuple[int, int], int]
    rounds: float
    licence: str | None = None
    warnings: tuple[str, ...] = ()
    fits: bool | None = None
    reason: str | None = None
    learnt_bytes: int | None = None  # of what learns; None where the denoiser's shapes are not known
    memory: TrainingMemory | None = None
    seconds: float | None = None
    timed_by: Literal["training", "serving"] | None = None
    usd: float | None = None
    defaults: Mapping[str, float | str] = field(default_factory=dict)  # the model's own, where no other was said


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A sample as PNG: of which step, and of which of the prompts, counted from 1."""

    step: int
    prompt: int
    image: bytes


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where a training stands. `losses` are (step, loss), thinned out; `model` is None before anything was read."""

    name: str
    model: str | None
    is_running: bool
    step: int
    of: int
    losses: tuple[tuple[int, float], ...]
    samples: tuple[TrainingSample, ...]
