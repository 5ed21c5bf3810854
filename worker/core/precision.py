"""Precisions: how many bits a model's weights have in memory, what holds them so, and which weights that are."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

DType = Literal["float32", "float16", "bfloat16"]
Precision = Literal["auto", "bf16", "fp16", "fp32", "fp8", "int8", "8bit", "4bit"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Quantizer = Literal["casting", "torchao", "bitsandbytes", "gguf"]
# Weights that do not stay on the device: the text encoders', fetched layer by layer; whole components; all layers.
Offload = Literal["none", "group", "model", "sequential"]
DeviceType = Literal["cpu", "cuda", "mps"]

# Those in which a model also computes.
DTYPES: Mapping[Precision, DType] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What `auto` tries, in this order, once the model's own dtype does not fit.
NEAREST: tuple[Precision, ...] = ("fp8", "8bit", "4bit")
# Numbers in a block with a scale of its own: a layer whose rows are not whole blocks stays as it is.
BLOCK = 32
# Components that are made smaller. A VAE is small, and shows every rounding.
_PARTS = re.compile(r"(^|_)(transformer|unet|prior|decoder|text_encoder|language_encoder|language_model|mllm)(_\d+)?$")
_ENCODERS = re.compile(r"(^|_)(text_encoder|language_encoder|language_model|mllm)(_\d+)?$")
# Layers that stay as they are: embeddings, norms and what modulates them, the first and the last, and T5's `wo`, whose
# class casts what comes in to the dtype of its weight. diffusers leaves most of them out too when it casts to fp8.
_KEPT = re.compile(
    r"norm|embed|modulation|_mod\.|adaln|relative_attention_bias|(^|\.)(shared|wte|wo|lm_head|final_layer)\."
    r"|^(proj_in|proj_out|conv_in|conv_out|img_in|txt_in)\."
)
# The names of a single file that are no denoiser's and no text encoder's.
_NO_PART = re.compile(r"^(first_stage_model|vae|model_ema)\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """The form in which a model's weights were in memory: never `auto`; without a quantizer they were whole."""

    precision: Precision
    quantizer: Quantizer | None = None
    offload: Offload = "none"


# The quantizers whose weights can be written and read again as they are.
KEPT: frozenset[Quantizer] = frozenset({"casting", "gguf"})


def form_name(precision: Precision, dtype: DType, quantizer: Quantizer) -> str:
    """Return the name of a form of weights, by which those that were made smaller once are found again."""
    return f"{precision}-{dtype}-{quantizer}"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to hold weights in a precision: the library, its package, the devices, and bits of one number."""

    quantizer: Quantizer
    package: str | None
    devices: frozenset[DeviceType]
    bits: float
    convolutions: bool = False  # True if it also takes them
    offloads: bool = True  # False if its weights have to stay on the device

    @property
    def is_installed(self) -> bool:
        """True if its package can be imported here."""
        return self.package is None or find_spec(self.package) is not None


_CUDA: frozenset[DeviceType] = frozenset({"cuda"})
_CPU_CUDA: frozenset[DeviceType] = frozenset({"cpu", "cuda"})
_ANY: frozenset[DeviceType] = frozenset({"cpu", "cuda", "mps"})
_GGUF_8 = Way("gguf", None, _ANY, 8.5)
# The first one that is installed and is for the device.
WAYS: Mapping[Precision, tuple[Way, ...]] = {
    "fp8": (Way("casting", None, _CPU_CUDA, 8, convolutions=True),),
    "int8": (Way("torchao", "torchao", _CPU_CUDA, 8.25, offloads=False), _GGUF_8),
    # On a CPU bitsandbytes looks for kernels on the Hub.
    "8bit": (Way("bitsandbytes", "bitsandbytes", _CUDA, 8.25, offloads=False), _GGUF_8),
    "4bit": (
        Way("bitsandbytes", "bitsandbytes", _CUDA, 4.5, offloads=False),
        Way("gguf", None, _ANY, 5.0),
    ),
}


def ways(precision: Precision, device: DeviceType) -> Iterator[Way]:
    """Yield the ways to hold weights in `precision` on such a device with what is installed; none for a dtype."""
    return (way for way in WAYS.get(precision, ()) if device in way.devices and way.is_installed)


def is_encoder(component: str) -> bool:
    """True for a component that reads the prompt: it works once for each, before the first step."""
    return bool(_ENCODERS.search(component))


def is_reducible(component: str, tensor: str, shape: tuple[int, ...]) -> bool:
    """True for a weight of a component that a precision makes smaller: a matrix, or a convolution's kernel.

    The names are those of the component's own tensors, or of a single file's.
    """
    return (
        len(shape) >= 2
        and tensor.endswith(".weight")
        and (len(shape) > 2 or shape[-1] % BLOCK == 0)
        and bool(_PARTS.search(component) or (component == "model" and not _NO_PART.match(tensor)))
        and not _KEPT.search(tensor)
    )


@dataclass(frozen=True, slots=True)
class Reducible:
    """Numbers of a component in weights that a precision makes smaller."""

    matrices: int = 0
    kernels: int = 0

    @classmethod
    def of(cls, component: str, tensors: Mapping[str, tuple[int, ...]]) -> "Reducible":
        """Count those among the shapes of a component's tensors."""
        shapes = [shape for name, shape in tensors.items() if is_reducible(component, name, shape)]
        return cls(
            sum(math.prod(shape) for shape in shapes if len(shape) == 2),
            sum(math.prod(shape) for shape in shapes if len(shape) > 2),
        )

    def __add__(self, other: "Reducible") -> "Reducible":
        return Reducible(self.matrices + other.matrices, self.kernels + other.kernels)
