"""A model's facts: its source, its registry entry, and the detection of its files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from worker.core.device import DeviceMap
from worker.core.own_training import OwnTraining
from worker.core.precision import DType, Precision, Reducible
from worker.core.quality import Quality
from worker.core.single_file import EncoderKind


class Parsed(BaseModel):
    """Base of everything read from outside: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Task(StrEnum):
    """What is asked of a model, in the Hub's words."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    INPAINTING = "inpainting"
    IMAGE_EDITING = "image-editing"
    CONTROLNET = "controlnet"
    UPSCALING = "upscaling"
    TEXT_TO_VIDEO = "text-to-video"
    IMAGE_TO_VIDEO = "image-to-video"
    VIDEO_TO_VIDEO = "video-to-video"


class Kind(StrEnum):
    """The kind of a file or a folder."""

    PIPELINE = "pipeline"  # a diffusers repository, model_index.json
    CHECKPOINT = "checkpoint"  # a single file that holds a whole model
    DENOISER = "denoiser"  # the transformer or UNet alone
    COMPONENT = "component"  # one part of a diffusers repository, config.json
    LORA = "lora"
    VAE = "vae"
    TEXT_ENCODER = "text-encoder"
    TEXTUAL_INVERSION = "textual-inversion"
    CONTROLNET = "controlnet"
    T2I_ADAPTER = "t2i-adapter"
    IP_ADAPTER = "ip-adapter"
    MOTION_MODULE = "motion-module"
    HYPERNETWORK = "hypernetwork"
    UPSCALER = "upscaler"
    IMAGE_ENCODER = "image-encoder"
    UNKNOWN = "unknown"


# The hosts of schemes whose references name none.
_HOSTS: Mapping[str, str] = {"hf": "huggingface.co", "civitai": "civitai.com", "file": ""}


class ModelSource(Parsed):
    """The source of a model's bytes.

    `locator` is `org/repo` for `hf`, a model's number for `civitai` (empty when only the version is known), the URL for
    `url` and a path for `file`. `revision` is a commit, branch or tag, or CivitAI's version number; `filename` a file
    below the locator, for CivitAI its name or number; `subfolder` a folder below it that is the model.
    """

    scheme: Literal["hf", "civitai", "url", "file"]
    locator: str
    revision: str | None = None
    filename: str | None = None
    subfolder: str | None = None
    sha256: str | None = None  # the digest that the file must have, when it is pinned; of a folder that of its files
    choice: str | None = None  # how CivitAI's file is chosen, "format=SafeTensor&fp=fp16" say
    only: tuple[str, ...] = ()  # the components of a pipeline's repository that are wanted; all of them when empty
    without: tuple[str, ...] = ()  # the components that are not

    def wants(self, component: str) -> bool:
        """True if the weights of this part of a pipeline's repository are asked for."""
        return component not in self.without and (not self.only or component in self.only)

    @property
    def whole(self) -> "ModelSource":
        """The same source with all its parts."""
        return self.model_copy(update={"only": (), "without": ()})

    @property
    def is_local(self) -> bool:
        """True if the source lies on this machine, in one of the operator's own folders."""
        return self.scheme == "file"

    @property
    def is_repository(self) -> bool:
        """True if the source is a repository of the Hub, or a part of one."""
        return self.scheme == "hf"

    @property
    def host(self) -> str:
        """The host of the source; empty for a local one."""
        return urlsplit(self.locator).hostname or "" if (host := _HOSTS.get(self.scheme)) is None else host

    @property
    def reference(self) -> str:
        """The canonical text of this source, as a caller could send it."""
        text = self.locator if self.scheme in {"hf", "url"} else f"{self.scheme}:{self.locator}"
        if self.revision:
            text += f"@{self.revision}"
        path = self.filename or self.subfolder
        if path:
            text += f"#{path}"
        pins = [self.choice, f"sha256={self.sha256}" if self.sha256 else None]
        query = "&".join(filter(None, pins))
        return f"{text}?{query}" if query else text


class ReferenceSpec(Parsed):
    """An object with a reference. A reference alone stands for an object that names nothing else."""

    model: str = Field(min_length=1, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _bare_reference(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value


class AdapterSpec(ReferenceSpec):
    """One adapter as a request names it. `field` is the request's field, by which all tables know its kind."""

    field: ClassVar[str]

    @property
    def sent_images(self) -> tuple[str, ...]:
        """The images that come with it, as they were sent."""
        return ()


LoraWeight = Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)]


class LoraSpec(AdapterSpec):
    """A LoRA that belongs to a model or is asked for by a job. `weight` multiplies its effect; 0 is none.

    `weights` replaces `weight` for a component of the pipeline, or for the modules below one: `text_encoder`,
    `unet.mid_block`, `transformer.transformer_blocks.3`. The longest name that fits a module counts. A reference alone
    stands for an object that names nothing else.
    """

    field: ClassVar[str] = "loras"

    weight: LoraWeight = 1.0
    weights: dict[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)], LoraWeight] = Field(
        default_factory=dict, max_length=64
    )
    weight_name: str | None = None
    name: str | None = None


class Lightning(Parsed):
    """A distillation LoRA that a model uses unless a request says `lightning: false`.

    Not `by_default`, it is used for requests that say `lightning: true`. `others` are for other numbers of steps.
    """

    lora: str
    steps: int = Field(ge=1, le=100)
    weight: float = 1.0
    others: dict[Annotated[int, Field(ge=1, le=100)], str] = Field(default_factory=dict)
    by_default: bool = True
    defaults: dict[str, JsonValue] = Field(default_factory=dict)


class OwnUpscaler(Parsed):
    """Another model of models.yaml, that enlarges a model's images `scale` times unless a request says otherwise."""

    model: str = Field(min_length=1, max_length=256)
    scale: int = Field(ge=2, le=8)


class Tier(Parsed):
    """A class of GPU that models are assigned to. `runpod_pools` are for `deploy runpod`, else the least enough."""

    vram_gb: int = Field(gt=0)
    max_containers: int = Field(default=1, ge=1)  # of a gateway's platform, as is the next; one worker reads neither
    scaledown_s: int = Field(default=300, ge=2, le=3600)
    timeout_s: int = Field(default=1800, gt=0)  # bounds each job of the tier's models
    runpod_pools: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_]+$")], ...] = ()


class ModelSpec(Parsed):
    """One model as the registry, or a caller's reference, describes it. What is not said is detected."""

    id: str
    source: ModelSource
    aliases: tuple[str, ...] = ()
    description: str | None = None
    tasks: tuple[Task, ...] = ()
    architecture: str | None = None
    pipeline: str | None = None
    config: str | None = None
    tier: str | None = None
    timeout_s: float | None = None  # one job's at most, as the tier has it
    dtype: DType | None = None
    precision: Precision | None = None  # of requests that name none; else the worker's
    variant: str | None = None
    prediction_type: Literal["epsilon", "v_prediction"] | None = None  # where neither header nor metadata tells
    base: str | None = None  # the repository that gives a partial file its other parts
    vae: str | None = None  # a reference; replaces the model's own
    components: dict[str, str] = Field(default_factory=dict)  # component name -> reference
    fallback: str | None = None  # the registered model that runs when this one cannot be had
    min_vram_gb: float | None = None
    licence: str | None = None  # where the source has no page that names it
    device_map: DeviceMap | None = None  # over which GPUs its components are spread
    context_parallel: int | None = None  # between how many GPUs its denoiser's tokens are shared out
    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    limits: dict[str, float] = Field(default_factory=dict)
    loras: tuple[LoraSpec, ...] = ()
    lightning: Lightning | None = None
    upscale: OwnUpscaler | None = None
    quality: Quality | None = None  # of requests that name none; else the worker's
    refiner: str | None = None  # the registered model that draws the last steps where a request asks for it
    training: OwnTraining | None = None
    subjects: tuple[str, ...] = ()  # all that a small model can generate, by name
    version: str | None = None  # "v3", of an entry that has versions
    split: dict[str, float] = Field(default_factory=dict)  # version or alias -> share of the requests
    golden: dict[str, int] = Field(default_factory=dict)  # prompt -> seed, by which its versions are compared
    paired: float = 0  # percentage of the split's requests that another arm's version generates too

    @property
    def served_name(self) -> str:
        """The name under which this version alone is served."""
        return f"{self.id}@{self.version}" if self.version else self.id

    @property
    def other_models(self) -> dict[str, str]:
        """The registered models that this one names, by the field that names them."""
        upscaler = self.upscale.model if self.upscale else None
        named = {"fallback": self.fallback, "upscale": upscaler, "refiner": self.refiner}
        return {field: model for field, model in named.items() if model is not None}


DENOISERS = ("transformer", "unet")  # the names of diffusers for a denoiser among a repository's parts
NEVER_LOADED = frozenset({"safety_checker"})  # parts that are off by default, and heavier than some models
NEVER_COMPLETED = NEVER_LOADED | {"feature_extractor", "image_encoder"}  # parts that a single file needs as little
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth"})  # read by unpickling, which can run code; in lower case
SAFETENSORS = frozenset({".safetensors", ".sft"})
Confidence = Literal["high", "medium", "low"]


def safetensors_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder itself. A Mac's `._` files beside them hold no weights."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in SAFETENSORS and path.is_file())
    return sorted(path for path in files if not path.name.startswith("."))


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """A weight file's header: every tensor's dtype and shape, and the file's own metadata. No weights."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    container: Literal["safetensors", "gguf", "torch"]
    file_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors together, as stored."""
        return sum(tensor_bytes(dtype, shape) for dtype, shape in self.tensors.values())

    @property
    def parameters(self) -> int:
        """The count of numbers in all tensors together."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    def packed(self, beside: tuple[str, ...]) -> Mapping[str, int]:
        """The bytes of each GGUF matrix that stays packed when loaded; of the parts `beside` a denoiser none does."""
        return {
            name: tensor_bytes(dtype, shape)
            for name, (dtype, shape) in self.tensors.items()
            if _BLOCKS.get(dtype, (1, 2))[0] > 1
            and stays_packed(name, shape, _BLOCKS[dtype][0])
            and not name.startswith(beside)
        }


# dtype -> (numbers in a block, bytes of the block); the quantized ones are GGML_QUANT_SIZES of llama.cpp's gguf package
_BLOCKS: Mapping[str, tuple[int, int]] = {
    "F64": (1, 8), "I64": (1, 8), "U64": (1, 8), "C64": (1, 8), "F32": (1, 4), "I32": (1, 4), "U32": (1, 4),
    "F16": (1, 2), "BF16": (1, 2), "I16": (1, 2), "U16": (1, 2), "I8": (1, 1), "U8": (1, 1), "BOOL": (1, 1),
    "F8_E4M3": (1, 1), "F8_E5M2": (1, 1), "F8_E8M0": (1, 1), "F8_E4M3FNUZ": (1, 1), "F8_E5M2FNUZ": (1, 1),
    "F6_E2M3": (4, 3), "F6_E3M2": (4, 3), "F4": (2, 1), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 40), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "Q8_K": (256, 292), "IQ1_S": (256, 50), "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}  # fmt: skip


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of one tensor as stored; quantized types come in whole blocks along the last axis."""
    numbers, size = _BLOCKS.get(dtype, (1, 2))
    return -(-math.prod(shape) // numbers) * size


def stays_packed(name: str, shape: tuple[int, ...], numbers: int) -> bool:
    """True for a GGUF tensor that stays in its blocks of `numbers` when loaded: a layer's matrix of whole blocks."""
    return len(shape) == 2 and shape[-1] % numbers == 0 and name.endswith(".weight")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A model's claims in its page or metadata: they decide only where the header is silent, and are never proof."""

    base: str | None = None  # CivitAI's baseModel, or the Hub's base_model
    kind: str | None = None  # CivitAI's type: LORA, Checkpoint …
    pipeline: str | None = None  # the Hub's `diffusers:XPipeline` tag
    prediction_type: str | None = None
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    name: str | None = None  # title or file name: the least trusted of all
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """A diffusers scheduler class, and its options over the model's own config."""

    cls: str
    options: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Detection:
    """A model's facts as its files show them, with the reasons. `Kind.UNKNOWN` is an answer, never a guess."""

    kind: Kind
    format: str  # "diffusers", "safetensors", …
    architecture: str | None = None
    pipeline: str | None = None
    tasks: tuple[Task, ...] = ()
    prediction_type: str | None = None
    scheduler: str | None = None  # the class of a repository's own
    zero_snr: bool = False  # trained down to zero signal: the scheduler has to begin there too
    native_size: int | None = None  # pixels of one side
    size_grid: int | None = None  # pixels of which a side is a multiple: those of one token, or of one latent
    evidence: tuple[str, ...] = ()
    activation_gb_per_mp: float = 2.0  # working memory for one megapixel, half precision
    near: tuple[str, ...] = ()  # the architectures that an unknown file resembles most
    confidence: Confidence = "high"
    quantization: str | None = None  # a storage of catalog/capabilities.py, or another's own name
    variant: str | None = None  # a training of the same shapes: "turbo", "pony" …; of a part which one: "kl-16" …
    parts: tuple[str, ...] = ()  # of a single file: "denoiser", "vae", "text_encoder", "text_encoder_2" …
    encoders: tuple[EncoderKind, ...] = ()  # the kinds of a single file's text encoders, one each
    part_classes: tuple[str, ...] = ()  # of a repository's parts, as model_index.json names them
    controlnets: int = 0  # that a repository holds in one part, where it holds several
    component_class: str | None = None  # of a part: the diffusers or transformers class that reads it
    few_steps: SchedulerConfig | None = None  # the scheduler for a single file of this variant


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's bytes on disk. `root` is a diffusers folder, or the file itself for a single file."""

    root: Path
    total_bytes: int
    revision: str | None = None
    variant: str | None = None  # the weight variant that was fetched of a repository, "fp16" say
    bytes_downloaded: int = 0
    parameters: Mapping[str, int] = field(default_factory=dict)  # weights per component, from the headers
    packed: Mapping[str, int] = field(default_factory=dict)  # bytes per component that stay quantized in memory
    reducible: Mapping[str, Reducible] = field(default_factory=dict)  # of the weights, what a precision makes smaller
    reduced: Mapping[str, Path] = field(default_factory=dict)  # made smaller before: folders by the weights' form
    sha256: str | None = None  # of a single file, where it is known; of a local folder where it is pinned
    base: Path | None = None  # a diffusers folder that gives the parts that `root` lacks
    parts: Mapping[str, Path] = field(default_factory=dict)  # components that come from elsewhere, by name
    config: Path | None = None  # a folder that describes the parts of a single file

    @property
    def is_single_file(self) -> bool:
        """True if the model is one file rather than a diffusers folder."""
        return self.root.is_file()


@dataclass(frozen=True, slots=True)
class Outline:
    """The facts about a source before its weights are fetched: JSON files by name, or one header."""

    configs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # "unet/config.json" -> its content
    header: TensorIndex | None = None
    weight_bytes: int | None = None
    revision: str | None = None
    declared: Declaration | None = None
    file_name: str = ""  # of the one weight file; only a hint
