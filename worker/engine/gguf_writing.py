"""A denoiser written as GGUF, as ComfyUI-GGUF has it: names without a prefix, matrices in blocks, all else plain.

The blocks are packed by GGUF's own package, which has no packer in Python for the kinds with `K` in their names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from torch import Tensor

from worker.core.precision import is_reducible
from worker.engine.gguf_weights import NOTED_SHAPE

Blocks = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
# How far a number may move, in shares of the largest one in its block: half of a step, and a whole one at the end of a
# scale that has one number less above than below. Scales are float16.
BLOCKS: Mapping[Blocks, float] = {"q8_0": 0.5 / 127, "q5_1": 1 / 31, "q5_0": 1 / 16, "q4_1": 1 / 15, "q4_0": 1 / 8}
_MOST_SIDES = 4  # of a tensor in GGUF; the shape of one with more is noted, as ComfyUI-GGUF reads it
_SCALE_ROUNDING = 2**-9
_PLAIN = {"fp32": GGMLQuantizationType.F32, "fp16": GGMLQuantizationType.F16, "bf16": GGMLQuantizationType.BF16}
# The names by which ComfyUI-GGUF knows the models: a file of another name is refused there.
_ARCHITECTURES: Mapping[str, str] = {
    "FluxTransformer2DModel": "flux",
    "ChromaTransformer2DModel": "flux",
    "SD3Transformer2DModel": "sd3",
    "AuraFlowTransformer2DModel": "aura",
    "Lumina2Transformer2DModel": "lumina2",
    "ZImageTransformer2DModel": "lumina2",
    "QwenImageTransformer2DModel": "qwen_image",
    "LTXVideoTransformer3DModel": "ltxv",
    "HunyuanVideoTransformer3DModel": "hyvid",
    "WanTransformer3DModel": "wan",
}


def write_gguf(tensors: Mapping[str, Tensor], denoiser: Any, path: Path, stored: str) -> None:
    """Write a denoiser's tensors, float32 and by the names that they are to have."""
    writer = GGUFWriter(str(path), architecture_of(denoiser))
    writer.add_quantization_version(2)
    try:
        for name, tensor in tensors.items():
            kind = _kind(name, tuple(tensor.shape), stored)
            array = tensor.float().contiguous().numpy()
            if array.ndim > _MOST_SIDES:
                writer.add_array(f"{NOTED_SHAPE}{name}", [int(size) for size in array.shape])
                array = array.reshape(array.shape[0], -1)
            if kind is GGMLQuantizationType.F32:
                writer.add_tensor(name, array)
            elif kind is GGMLQuantizationType.F16:
                writer.add_tensor(name, array.astype(np.float16))
            else:
                writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def architecture_of(denoiser: Any) -> str:
    """Return what the file says that it is."""
    name = type(denoiser).__name__
    if name.startswith("UNet"):
        return "sdxl" if getattr(denoiser, "add_embedding", None) is not None else "sd1"
    return _ARCHITECTURES.get(name, name.lower())


def _kind(name: str, shape: tuple[int, ...], stored: str) -> GGMLQuantizationType:
    """Return how one tensor is stored: vectors in float32, which cost nothing, and what has no blocks in bfloat16."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if stored in _PLAIN:
        return _PLAIN[stored]
    kind = GGMLQuantizationType[stored.upper()]
    is_packed = len(shape) == 2 and shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 and is_reducible("model", name, shape)
    return kind if is_packed else GGMLQuantizationType.BF16


def unpacked(tensor: Tensor) -> Tensor:
    """Return a loaded tensor as numbers."""
    return dequantize_gguf_tensor(tensor) if isinstance(tensor, GGUFParameter) else tensor


def is_within(tensor: Tensor, got: Tensor, stored: str) -> bool:
    """True if the loaded `got` is what `tensor` is once it is stored so."""
    rounded = tensor if tensor.ndim < 2 or stored == "fp32" else tensor.to(_rounded(stored))
    if not isinstance(got, GGUFParameter) and torch.equal(rounded.float(), got.float()):
        return True
    if stored not in BLOCKS or tensor.ndim != 2 or tensor.shape[-1] % 32:
        return False
    own, back = tensor.float().reshape(-1, 32), unpacked(got).float().reshape(-1, 32)
    largest = own.abs().amax(dim=1, keepdim=True)
    share = next(share for blocks, share in BLOCKS.items() if blocks == stored) + _SCALE_ROUNDING
    excess = (own - back).abs() - largest * share
    return float(excess.max()) <= 1e-7


def _rounded(stored: str) -> torch.dtype:
    return torch.float16 if stored == "fp16" else torch.bfloat16
