"""Quantized weights: made plain as they are read, or kept packed for layers of their own; the rest is refused."""

from collections.abc import Iterator
from typing import Any

import torch

from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.json_text import parse_bounded

Weights = dict[str, torch.Tensor]

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
# Names of the number that a layer's fp8 weights have to be multiplied with.
_SCALES = (".scale_weight", ".weight_scale")
# Other tensors that writers leave in the file: scales of activations, for kernels that compute in fp8, and markers.
_LEFTOVERS = (".scale_input", ".input_scale", ".comfy_quant", ".scale_output", ".output_scale")
_MARKERS = ("scaled_fp8",)
_GLOBAL_SCALE = ".weight_scale_2"
_MAX_MARKER = 4_096  # bytes
_COMFY_FORMATS = frozenset({"float8_e4m3fn", "float8_e5m2"})


def is_nvfp4(weights: Weights) -> bool:
    """True for 4-bit weights with a scale for each block of 16, and one for all of them."""
    return any(name.endswith(_GLOBAL_SCALE) for name in weights)


def is_packed(weights: Weights) -> bool:
    """True if some weights are GGUF's, or bundled with their scales."""
    return any(hasattr(tensor, "quant_type") for tensor in weights.values())


def bundle(weights: Weights) -> Weights:
    """Return nvfp4 weights, and fp8 ones beside them, each bundled with its scales: they are split and joined as one.

    Raises UnsupportedModel for ComfyUI's own kind, whose scales lie in another order, CorruptFile for missing scales.
    """
    from diffusers.quantizers.bfl.bfl_quantizer import BFLQuantizer

    if any(name.endswith(".comfy_quant") for name in weights):
        raise UnsupportedModel(
            "The file's nvfp4 weights are ComfyUI's, whose scales lie in the order of one kind of GPU; "
            "use Black Forest Labs' nvfp4 file, or an fp8, bf16 or GGUF one.",
            field="model",
        )
    try:
        bundled: Weights = BFLQuantizer(packed_config({}, torch.bfloat16)).maybe_update_state_dict(weights)
    except (KeyError, ValueError):
        raise CorruptFile(
            "The file's nvfp4 weights lack scales of some layers; download it again.", field="model"
        ) from None
    return bundled


def unbundle(weights: Weights) -> Weights:
    """Return bundled weights and their scales under names of their own, as diffusers' loader takes them."""
    loose: Weights = {}
    for name, tensor in weights.items():
        if not hasattr(tensor, "weight_scale"):
            loose[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        loose[name] = tensor.as_tensor()
        for scale in ("weight_scale", "weight_scale_2", "input_scale"):
            if getattr(tensor, scale) is not None:
                loose[f"{stem}.{scale}"] = getattr(tensor, scale)
    return loose


def packed_config(weights: Weights, dtype: torch.dtype) -> Any:
    """Return diffusers' config for packed weights: GGUF or nvfp4, unpacked to `dtype` layer by layer when used."""
    from diffusers import BFLQuantizationConfig, GGUFQuantizationConfig

    if any(hasattr(tensor, "quant_shape") for tensor in weights.values()):
        return GGUFQuantizationConfig(compute_dtype=dtype)
    return BFLQuantizationConfig(compute_dtype=dtype)


def dequantize(weights: Weights, dtype: torch.dtype) -> Weights:
    """Return `weights` with every fp8 tensor as a plain one of `dtype`, times its layer's scale where it has one.

    A scale is one number, or one for each output channel. `weights` is emptied as it is read: both together would need
    twice the memory. Raises UnsupportedModel for scales of blocks (mxfp8), CorruptFile for a scale of no layer.
    """
    scales = dict(_scales(weights))
    plain: Weights = {}
    while weights:
        name, tensor = weights.popitem()
        if name.endswith(".comfy_quant"):
            _check_comfy(name, tensor)
        # ComfyUI marks a prefix of the file as scaled, with an empty fp8 tensor.
        if name.endswith((*_LEFTOVERS, *_SCALES)) or name.rpartition(".")[2] in _MARKERS:
            continue
        scale = scales.pop(name, None)
        if scale is not None:
            tensor = _scaled(name, tensor, scale).to(dtype)
        elif tensor.dtype in _FP8:
            tensor = tensor.to(dtype)
        plain[name] = tensor
    if scales:
        raise CorruptFile(
            f"The file has a scale for {next(iter(scales))[:80]!r} but not that tensor; download it again.",
            field="model",
        )
    return dict(reversed(plain.items()))


def unpack(weights: Weights, dtype: torch.dtype) -> Weights:
    """Return packed `weights` as plain tensors of `dtype`, for parts of a model that compute with plain ones only."""
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    # A bundled tensor makes itself plain in a cast.
    return {
        name: (dequantize_gguf_tensor(tensor) if isinstance(tensor, GGUFParameter) else tensor).to(dtype)
        for name, tensor in weights.items()
    }


def _scales(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights.items():
        for ending in _SCALES:
            if name.endswith(ending):
                yield f"{name.removesuffix(ending)}.weight", tensor


def _scaled(name: str, tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply in float32: fp8 has 3 bits and would round the product to one of 256 values again."""
    scale = scale.float()
    per_channel = scale.numel() == tensor.shape[0] and scale.numel() == max(scale.shape, default=1)
    if scale.numel() != 1 and not per_channel:
        raise UnsupportedModel(
            f"{name[:80]} is scaled in blocks of {tuple(scale.shape)}, as mxfp8 is, which is not read here; "
            "use an fp8 file with one scale for each layer, or a plain fp16, bf16 or GGUF file.",
            field="model",
        )
    return tensor.float() * scale.reshape(-1, *(1,) * (tensor.ndim - 1))


def _check_comfy(name: str, tensor: torch.Tensor) -> None:
    """Check ComfyUI's marker, JSON that says how a layer is quantized. Raises UnsupportedModel unless it is fp8."""
    try:
        marker = parse_bounded(bytes(tensor.flatten()[:_MAX_MARKER].to(torch.uint8).tolist()))
        method = marker.get("format") if isinstance(marker, dict) else None
    except ValueError:
        raise CorruptFile(
            f"{name[:80]} is not the JSON it should be; download the file again.", field="model"
        ) from None
    if method not in _COMFY_FORMATS:
        raise UnsupportedModel(
            f"{name[:80]} is quantized as {str(method)[:40]}, which is not read here; "
            f"use a file in {', '.join(sorted(_COMFY_FORMATS))}, fp16, bf16 or GGUF.",
            field="model",
        )
