"""Weights of a loaded pipeline held in fewer bits: layer by layer, each on the device where it is made smaller."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from diffusers.quantizers.gguf.utils import GGUFParameter
from gguf import GGMLQuantizationType
from torch import Tensor, nn

from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel
from worker.core.precision import BLOCK, Precision, Quantizer, is_reducible
from worker.engine.classes import DTYPES
from worker.engine.gguf_weights import PackedLinear
from worker.engine.packages import bitsandbytes_package

_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max
_READ = re.compile(r"\bself\.([a-z_]\w*(?:\.\w+)*)\.weight\b")
_LINEAR = (nn.Linear,)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A layer of one module, made smaller: `parent.name` is replaced by what is returned.
Reduce = Callable[[nn.Module, LoadPlan], nn.Module]


def reduce_weights(pipe: Any, plan: LoadPlan) -> int:
    """Hold the weights of `pipe` in the plan's precision, and return how many layers that are; 0 where none is asked.

    Raises UnsupportedModel for a pipeline none of whose layers can be held so.
    """
    if plan.quantizer is None:
        return 0
    kinds = (*_LINEAR, *(_CONVOLUTIONS if plan.quantizer == "casting" else ()))
    reduce, count = _QUANTIZERS[plan.quantizer], 0
    if plan.reduced is not None:  # those of a kind of their own came so
        count = sum(is_reduced(part) for part in pipe.components.values() if isinstance(part, nn.Module))
    for component, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            continue
        for path in _layers(component, part, kinds):
            parent, _, name = path.rpartition(".")
            owner = part.get_submodule(parent)
            # Nothing else holds the layer: its whole weight is gone before the next one is packed.
            if plan.quantizer == "casting" and not _fits_fp8(getattr(owner, name)):
                continue
            setattr(owner, name, reduce(getattr(owner, name), plan))
            count += 1
    if not count:
        raise UnsupportedModel(
            f"precision {plan.precision}: none of the layers of this {plan.pipeline} can be held in fewer bits; leave "
            "precision out.",
            field="precision",
        )
    return count


def is_reduced(part: nn.Module) -> bool:
    """True if layers of a component are in GGUF's blocks or in fp8."""
    return any(isinstance(module, PackedLinear) for module in part.modules()) or any(
        parameter.dtype == _FP8 for parameter in part.parameters()
    )


def _layers(component: str, part: nn.Module, kinds: tuple[type, ...]) -> list[str]:
    """Return the paths of the layers that can be made smaller."""
    modules = dict(part.named_modules())
    weights = [getattr(module, "weight", None) for module in modules.values()]
    uses = Counter(id(weight) for weight in weights if isinstance(weight, Tensor))
    # A library takes the first weight's dtype for that of what comes in.
    first = next(part.parameters(), None)
    read = {
        f"{path}.{name}" if path else name
        for path, module in modules.items()
        for name in _read_by(type(module).forward)
    }
    layers = []
    for path, layer in modules.items():
        # Not subclasses: some are never called, their parent reads the weight.
        if type(layer) not in kinds or not is_reducible(component, f"{path}.weight", tuple(layer.weight.shape)):
            continue
        if path in read:
            continue
        if layer.weight.is_floating_point() and uses[id(layer.weight)] == 1 and layer.weight is not first:
            layers.append(path)
    return layers


@cache
def _read_by(call: Callable[..., Any]) -> frozenset[str]:
    """Return the layers whose weight a call reads, for numbers or a dtype, as that of HunyuanDiT's pooling does."""
    try:
        return frozenset(_READ.findall(inspect.getsource(inspect.unwrap(call))))
    except (OSError, TypeError):  # a class without a file
        return frozenset()


def _fits_fp8(layer: nn.Module) -> bool:
    """False for a layer with numbers beyond fp8's largest one, which would become NaN."""
    tensors = [tensor for tensor in layer.parameters() if tensor.numel() and tensor.dtype != _FP8]
    return all(bool(tensor.abs().max() <= _FP8_MAX) for tensor in tensors)


def _cast(layer: nn.Module, plan: LoadPlan) -> nn.Module:
    """Keep a layer in fp8 and have it cast to the plan's dtype for as long as it computes."""
    apply_layerwise_casting_hook(layer, _FP8, DTYPES[plan.dtype], False)
    return layer


def _pack(layer: nn.Module, plan: LoadPlan) -> nn.Module:
    """Return a layer whose weight is in GGUF's blocks, unpacked while it computes."""
    weight = layer.weight.data.to(plan.device).float()
    kind, pack = _PACKED[plan.precision]
    with init_empty_weights():
        smaller = PackedLinear(weight.shape[1], weight.shape[0], layer.bias is not None, DTYPES[plan.dtype])
    blocks = pack(weight.reshape(-1, BLOCK)).reshape(weight.shape[0], -1)
    smaller.weight = GGUFParameter(blocks.to(layer.weight.device), quant_type=kind)
    if layer.bias is not None:
        smaller.bias = layer.bias
    return smaller.requires_grad_(False).train(layer.training)


def _q8_0(blocks: Tensor) -> Tensor:
    """Pack blocks of 32 numbers as a float16 scale and 32 bytes; the layout is GGUF's Q8_0."""
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    numbers = torch.where(scale > 0, blocks / scale, 0).round().to(torch.int8)
    return torch.cat([scale.half().view(torch.uint8), numbers.view(torch.uint8)], dim=1)


def _q4_1(blocks: Tensor) -> Tensor:
    """Pack blocks of 32 numbers as a float16 step and least number, and 16 bytes; the layout is GGUF's Q4_1."""
    least, most = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    step = (most - least) / 15
    numbers = torch.where(step > 0, (blocks - least) / step, 0).round().clamp(0, 15).to(torch.uint8)
    low, high = numbers.chunk(2, dim=1)
    return torch.cat([step.half().view(torch.uint8), least.half().view(torch.uint8), low | high << 4], dim=1)


_PACKED: Mapping[Precision, tuple[GGMLQuantizationType, Callable[[Tensor], Tensor]]] = {
    "int8": (GGMLQuantizationType.Q8_0, _q8_0),
    "8bit": (GGMLQuantizationType.Q8_0, _q8_0),
    "4bit": (GGMLQuantizationType.Q4_1, _q4_1),
}


def _torchao(layer: nn.Module, plan: LoadPlan) -> nn.Module:
    """Keep a layer's weight as int8 numbers, with a scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer.to(plan.device)
    quantize_(layer, Int8WeightOnlyConfig(), filter_fn=lambda module, _: module is layer)
    return layer


def _bitsandbytes(layer: nn.Module, plan: LoadPlan) -> nn.Module:
    """Return bitsandbytes' layer: int8 with outliers apart (LLM.int8), or NF4."""
    bitsandbytes = bitsandbytes_package()
    sizes: tuple[int, int] = (layer.weight.shape[1], layer.weight.shape[0])
    has_bias, weight = layer.bias is not None, layer.weight.data
    with init_empty_weights():
        if plan.precision == "4bit":
            smaller = bitsandbytes.nn.Linear4bit(*sizes, has_bias, DTYPES[plan.dtype], quant_type="nf4")
        else:
            smaller = bitsandbytes.nn.Linear8bitLt(*sizes, has_bias, has_fp16_weights=False)
    if plan.precision == "4bit":
        smaller.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=smaller)
    else:
        smaller.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    smaller.bias = layer.bias
    # Packed by the move to the device.
    return smaller.requires_grad_(False).train(layer.training).to(plan.device)


_QUANTIZERS: Mapping[Quantizer, Reduce] = {
    "casting": _cast,
    "gguf": _pack,
    "torchao": _torchao,
    "bitsandbytes": _bitsandbytes,
}
