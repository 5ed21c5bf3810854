"""Gradients through weights that are held in fewer bits and stay as they are: an adapter learns beside them.

A layer in fp8 or in GGUF's blocks makes its weight plain while it computes, and again for the gradient of what came in;
between the two nothing of that is kept. Layers of other packages bring their own gradients, or are refused by name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor
from torch import Tensor, nn

from worker.core.errors import UnsupportedModel

Plain = Callable[[], Tensor]
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BACK = {nn.Conv1d: nn.grad.conv1d_input, nn.Conv2d: nn.grad.conv2d_input, nn.Conv3d: nn.grad.conv3d_input}


def open_gradients(pipe: Any, dtype: torch.dtype) -> int:
    """Let gradients pass the layers of a pipeline that are held in fewer bits; they compute in `dtype`.

    Returns how many there are. Raises UnsupportedModel for a kind of layer that lets none pass.
    """
    kinds: dict[tuple[type, ...], nn.Module] = {}
    count = 0
    for layer in _reduced(pipe):
        kinds.setdefault((type(layer), type(layer.weight)), layer)
        plain, count = _plain_of(layer, dtype), count + 1
        if plain is not None:
            _put_aside(layer, dtype)
            layer.forward = partial(_through, layer, plain)  # in the place of a call that has no gradients
    for layer in kinds.values():
        _check(layer, dtype)
    return count


def _reduced(pipe: Any) -> Iterator[Any]:
    for part in pipe.components.values():
        for layer in part.modules() if isinstance(part, nn.Module) else ():
            weight = getattr(layer, "weight", None)
            if not isinstance(layer, _LAYERS) or not isinstance(weight, Tensor):
                continue
            if type(weight) is not nn.Parameter or weight.dtype.itemsize == 1:
                yield layer


def _plain_of(layer: Any, dtype: torch.dtype) -> Plain | None:
    """Return what makes a layer's weight plain; None for a layer that does so itself."""
    weight = layer.weight
    if isinstance(layer, GGUFLinear):
        return lambda: dequantize_gguf_tensor(weight).to(dtype)
    if weight.dtype.is_floating_point and type(weight) is nn.Parameter:
        return lambda: weight.to(dtype)
    return None


def _put_aside(layer: Any, dtype: torch.dtype) -> None:
    """Have a weight in its place that takes no memory, of the true shape and of a dtype that adapters can be of.

    peft rounds a fresh adapter to the dtype of its layer's weight, and reads its shape.
    """
    held = layer.weight
    shape = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else held.shape
    stand_in = torch.zeros((), dtype=dtype, device=held.device).expand(shape)
    layer.held = (held,)  # in a tuple it is no parameter
    layer.weight = nn.Parameter(stand_in, requires_grad=False)


def _through(layer: nn.Module, plain: Plain, input: Tensor) -> Tensor:
    result: Tensor = _Frozen.apply(input, layer, plain)
    return result


class _Frozen(torch.autograd.Function):  # type: ignore[misc]
    """A layer whose weight has no gradient, and is not kept for that of what came in."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Any, plain: Plain) -> Tensor:
        """Return what the layer makes of `input`."""
        ctx.layer, ctx.plain, ctx.shape, ctx.dtype = layer, plain, input.shape, input.dtype
        weight = plain()
        bias = None if layer.bias is None else layer.bias.to(weight.dtype)
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(input, weight, bias)
        result: Tensor = layer._conv_forward(input, weight, bias)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of what came in."""
        layer, weight = ctx.layer, ctx.plain()
        grad = grads[0].to(weight.dtype)
        if isinstance(layer, nn.Linear):
            return (grad @ weight).to(ctx.dtype), None, None
        back = next(each for kind, each in _BACK.items() if isinstance(layer, kind))
        sizes = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return back(ctx.shape, weight, grad, *sizes).to(ctx.dtype), None, None


def _check(layer: Any, dtype: torch.dtype) -> None:
    """Raise UnsupportedModel if no gradient passes a layer."""
    if isinstance(layer, nn.Linear):
        shape = (1, layer.in_features)
    else:
        shape = (1, layer.in_channels, *(max(each, 1) * 2 for each in layer.kernel_size))
    sent = torch.ones(shape, dtype=dtype, device=layer.weight.device, requires_grad=True)
    try:
        with torch.enable_grad():
            (back,) = torch.autograd.grad(layer(sent).float().sum(), sent)
        passes = bool(back.isfinite().all())
    except (RuntimeError, NotImplementedError, TypeError):
        passes = False
    if not passes:
        raise UnsupportedModel(
            f"Layers of {type(layer).__name__} let no gradient pass, and no adapter can learn beside them: train with "
            "precision fp8 or in another one, or a model of plain weights.",
            field="precision",
        )
