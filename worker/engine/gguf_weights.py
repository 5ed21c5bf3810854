"""The weights of a GGUF file: matrices stay packed, everything else is made plain, in the shapes that were meant.

Only layers that diffusers unpacks as they run can hold packed weights, and those are its linear ones. ComfyUI-GGUF
folds tensors whose rows are no whole blocks (`[n / 256, 256]`) and notes their true shape in the header.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.quantizers.gguf.utils import (
    SUPPORTED_GGUF_QUANT_TYPES,
    GGUFLinear,
    GGUFParameter,
    dequantize_gguf_tensor,
)
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from torch import Tensor

from worker.core.errors import UnsupportedModel
from worker.core.model import stays_packed
from worker.engine.quantization import Weights

NOTED_SHAPE = "comfy.gguf.orig_shape."
_BF16 = GGMLQuantizationType.BF16
_PLAIN = {GGMLQuantizationType[name] for name in ("F16", "F32", "F64", "I8", "I16", "I32", "I64")}


def read_gguf(path: Path, dtype: torch.dtype) -> Weights:
    """Read a file's tensors: packed matrices as GGUFParameter, all others plain; what is unpacked is of `dtype`.

    Raises UnsupportedModel for a kind of blocks that diffusers cannot unpack.
    """
    reader = GGUFReader(str(path))
    return {tensor.name: _tensor(tensor, _noted_shape(reader, tensor), dtype) for tensor in reader.tensors}


def _noted_shape(reader: GGUFReader, tensor: Any) -> tuple[int, ...] | None:
    """Return the shape that the writer noted, if it holds as many numbers as the stored one."""
    field = reader.get_field(NOTED_SHAPE + tensor.name)
    if field is None:
        return None
    shape = tuple(int(field.parts[part][0]) for part in field.data)
    return shape if math.prod(shape) == tensor.n_elements else None


def _tensor(tensor: Any, noted: tuple[int, ...] | None, dtype: torch.dtype) -> torch.Tensor:
    kind = tensor.tensor_type
    shape = noted or tuple(int(size) for size in reversed(tensor.shape))
    data = torch.from_numpy(np.array(tensor.data))  # copied: the file is mapped
    if kind in _PLAIN:
        return data.reshape(shape)
    if kind == _BF16:
        return data.view(torch.bfloat16).reshape(shape)
    if kind not in SUPPORTED_GGUF_QUANT_TYPES:
        raise UnsupportedModel(
            f"{tensor.name[:80]} is stored as {kind.name}, which diffusers cannot unpack; use a file in Q8_0, say.",
            field="model",
        )
    numbers, size = GGML_QUANT_SIZES[kind]
    if stays_packed(tensor.name, shape, numbers):
        # Blocks follow one another, whatever the rows: folded ones are laid out anew without being unpacked.
        return GGUFParameter(data.reshape(shape[0], shape[1] // numbers * size), quant_type=kind)
    return dequantize_gguf_tensor(GGUFParameter(data, quant_type=kind)).reshape(shape).to(dtype)


class PackedLinear(GGUFLinear):  # type: ignore[misc]
    """diffusers' linear layer of GGUF's blocks, called as torch's own is: AnimateDiff names what goes in."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, ...xI, through the unpacked weight, OxI."""
        result: Tensor = super().forward(input)
        return result
