"""Changes of a module's output by an adapter: the mathematics of every algorithm.

A module computes y = W x + b. Each class here can be used in two ways. `added` gives the difference of (W + ΔW) x + b
from y, from x and y alone: a quantized or offloaded weight is as good as a plain one. `difference` gives ΔW for a plain
W, to be merged into a copy of it. Either way several adapters add up. Changes that depend on W are in `own_changes.py`.
Formulas as in LyCORIS 3.4 (github.com/KohakuBlueleaf/LyCORIS) and, for DoRA,
as it was published (arXiv 2402.09353); every change is linear in the weight that a job gives it.

Tensors arrive as the file has them; what a module needs on its device and in its dtype is made when first used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from worker.engine.adapters.targets import own_parameter, weight_shape


class Change:
    """An adapter's addition to one module's output, at weight 1."""

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        self._ready: dict[str, Tensor] = {}

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the addition to the output `y` of `module` for the input `x`."""
        raise NotImplementedError

    def merges(self, module: nn.Module) -> bool:
        """True if `module` computes with W + ΔW and b + Δb as with this change beside it."""
        return "bias" not in self._tensors or getattr(module, "bias", None) is not None

    def difference(self, own: Tensor) -> Tensor | None:
        """Return ΔW in float32 for a weight `own` in float32; None where the change is of the bias alone."""
        raise NotImplementedError

    def bias_difference(self, own: Tensor) -> Tensor | None:
        """Return Δb in float32 for a bias `own` in float32; None where it stays."""
        return None

    def merged(self, total: Tensor, own: Tensor, weight: float) -> Tensor:
        """Return `total` plus ΔW times `weight`, float32 and of the shape of the module's weight `own`."""
        difference = self.difference(own)
        return total if difference is None else torch.add(total, difference, alpha=weight)

    def rest(self) -> None:
        """Drop what was made ready for a module: a merged change is used once."""
        self._ready = {}

    def _like(self, y: Tensor) -> dict[str, Tensor]:
        """Return the tensors on the device and in the dtype of `y`; made once."""
        for name, tensor in self._tensors.items():
            ready = self._ready.get(name)
            if ready is None or ready.device != y.device or ready.dtype != y.dtype:
                # Always from the file's own numbers: those of a lower precision would not come back.
                is_like = tensor.dtype == y.dtype and tensor.device == y.device
                self._ready[name] = tensor if is_like else tensor.to(y.device, y.dtype)
        return self._ready


class Delta(Change):
    """A ΔW that does not depend on W, and a Δb."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of ΔW, a convolution's kernel counted as columns."""
        raise NotImplementedError

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return ΔW, of any shape with the right number of entries."""
        raise NotImplementedError

    def weight(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return ΔW for a weight of this shape, on the device and in the dtype of `like`."""
        return self.matrix(self._like(like)).reshape(shape)

    def difference(self, own: Tensor) -> Tensor | None:
        """Return ΔW."""
        return self.weight(tuple(own.shape), own)

    def bias_difference(self, own: Tensor) -> Tensor | None:
        """Return Δb, if there is one."""
        return self._like(own).get("bias")

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return ΔW x + Δb."""
        return operate(module, x, self.weight(shape_of(module), y), self._like(y).get("bias"))


class LowRank(Delta):
    """LoRA: ΔW = up · down, for convolutions with an optional core `mid` between them (Tucker)."""

    def __init__(self, down: Tensor, up: Tensor, mid: Tensor | None, bias: Tensor | None, scale: float) -> None:
        up, bias = (half if half is None or scale == 1 else half.float() * scale for half in (up, bias))
        super().__init__(down=down, up=up, mid=mid, bias=bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of `up`, columns of `down` and the kernel of `mid`."""
        mid = self._tensors.get("mid")
        kernel = 1 if mid is None else mid[0, 0].numel()
        return self._tensors["up"].shape[0], self._tensors["down"][0].numel() * kernel

    @property
    def is_plain(self) -> bool:
        """True if it is up · down and nothing else."""
        return self._tensors.keys() == {"down", "up"}

    def halves(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return down (rank, in) and up (out, rank), on the device and in the dtype of `like`."""
        tensors = self._like(like)
        return tensors["down"].flatten(1), tensors["up"].flatten(1)

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return up · down, contracted over the rank."""
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        if "mid" in tensors:
            return torch.einsum("or,rs...,si->oi...", up, tensors["mid"], down)
        return up @ down

    def merged(self, total: Tensor, own: Tensor, weight: float) -> Tensor:
        """Return `total` plus up · down times `weight`, without a ΔW beside it."""
        tensors = self._like(own)
        if "mid" in tensors:
            return super().merged(total, own, weight)
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        return torch.addmm(total.flatten(1), up, down, alpha=weight).reshape(own.shape)

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return ΔW x + Δb by two thin products instead of a thick one."""
        tensors = self._like(y)
        if isinstance(module, nn.Linear):
            inner = functional.linear(x, tensors["down"].flatten(1))
            return functional.linear(inner, tensors["up"].flatten(1), tensors.get("bias"))
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            up, down, mid = tensors["up"].flatten(1)[:, :, None, None], tensors["down"], tensors.get("mid")
            if mid is not None:
                inner = module._conv_forward(functional.conv2d(x, down.flatten(1)[:, :, None, None]), mid, None)
            else:
                down = down.reshape(down.shape[0], module.in_channels, *module.kernel_size)
                inner = module._conv_forward(x, down, None)
            return functional.conv2d(inner, up, tensors.get("bias"))
        return super().added(module, x, y)


class Hadamard(Delta):
    """LoHa: ΔW = (w1_a · w1_b) ∘ (w2_a · w2_b), for convolutions with optional cores t1 and t2."""

    def __init__(self, tensors: dict[str, Tensor], scale: float) -> None:
        super().__init__(**(tensors | {"w1_a": tensors["w1_a"].float() * scale}))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of w1_a, columns of w1_b; with cores, w1_a lies on its side."""
        one, two, core = self._tensors["w1_a"], self._tensors["w1_b"], self._tensors.get("t1")
        return (one.shape[0], two.shape[1]) if core is None else (one.shape[1], two.shape[1] * core[0, 0].numel())

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the product of both halves, entry by entry."""
        return _half(tensors, "w1", "t1") * _half(tensors, "w2", "t2")


class Kronecker(Delta):
    """LoKr: ΔW = w1 ⊗ w2, each whole or as the product of two halves, w2 for convolutions also with a core t2."""

    def __init__(self, tensors: dict[str, Tensor], scale: float) -> None:
        first = "w1" if "w1" in tensors else "w1_a"
        super().__init__(**(tensors | {first: tensors[first].float() * scale}))

    @property
    def shape(self) -> tuple[int, int]:
        """The factors' rows multiplied, and their columns."""
        rows, columns = 1, 1
        for name in ("w1", "w2"):
            whole, core = self._tensors.get(name), self._tensors.get("t2") if name == "w2" else None
            if whole is not None:
                rows, columns = rows * whole.shape[0], columns * whole[0].numel()
                continue
            left, right = self._tensors[f"{name}_a"], self._tensors[f"{name}_b"]
            rows *= left.shape[0] if core is None else left.shape[1]
            columns *= right.shape[1] * (1 if core is None else core[0, 0].numel())
        return rows, columns

    def weight(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return w1 ⊗ w2 in the shape of the module's weight."""
        first, second = self._factors(like, shape[2:])
        return torch.kron(first.reshape(*first.shape[:2], *(1 for _ in shape[2:])), second).reshape(shape)

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return (w1 ⊗ w2) x without ever making the product: x as a table, w2 on its rows, w1 on its columns."""
        if not isinstance(module, nn.Linear):
            return super().added(module, x, y)
        first, second = self._factors(y, ())
        table = x.unflatten(-1, (first.shape[1], second.shape[1]))
        return (first @ functional.linear(table, second)).flatten(-2)

    def _factors(self, like: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        tensors = self._like(like)
        first = tensors["w1"] if "w1" in tensors else tensors["w1_a"] @ tensors["w1_b"]
        second = tensors["w2"] if "w2" in tensors else _half(tensors, "w2", "t2")
        return first.flatten(1), second.reshape(second.shape[0], -1, *kernel)


class Difference(Delta):
    """A whole ΔW and Δb, as they are."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__(weight=weight, bias=bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of ΔW; of Δb where that is all."""
        tensor = self._tensors["weight"] if "weight" in self._tensors else self._tensors["bias"]
        return tensor.shape[0] if tensor.ndim else 1, tensor[0].numel() if tensor.ndim > 1 else 1

    @property
    def has_weight(self) -> bool:
        """True if there is a ΔW at all."""
        return "weight" in self._tensors

    def values(self, like: Tensor) -> Tensor:
        """ΔW for a bare parameter, shaped as it."""
        return self._like(like)["weight"].reshape(like.shape)

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """ΔW itself."""
        return tensors["weight"]

    def difference(self, own: Tensor) -> Tensor | None:
        """Return ΔW, if there is one."""
        return super().difference(own) if self.has_weight else None

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """ΔW x + Δb; a norm is asked with both weights, for not every one is linear in its own."""
        tensors = self._like(y)
        if isinstance(module, nn.Linear | _ConvNd | nn.Embedding):
            if self.has_weight:
                return super().added(module, x, y)
            return per_channel(module, tensors["bias"], y).expand_as(y)
        changed = {
            name: parameter + tensors[name].to(parameter.dtype).reshape(parameter.shape)
            for name in ("weight", "bias")
            if name in tensors and (parameter := own_parameter(module, name)) is not None
        }
        return torch.func.functional_call(module, changed, (x,)) - y


class Rows(Delta):
    """Some rows of another change: a fused module's change as it applies to one of its parts."""

    def __init__(self, whole: Delta, total: tuple[int, int], order: Sequence[slice]) -> None:
        super().__init__()
        self._whole, self._total, self._order = whole, total, order

    @property
    def shape(self) -> tuple[int, int]:
        """Number of the rows taken, and the whole's columns."""
        return sum(len(range(*part.indices(self._total[0]))) for part in self._order), self._total[1]

    def weight(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the rows of the whole's ΔW."""
        return take(self._whole.weight(self._total, like), self._order).reshape(shape)

    def rest(self) -> None:
        """Drop what was made ready of the whole."""
        self._whole.rest()


def take(tensor: Tensor, order: Sequence[slice]) -> Tensor:
    """Return rows of a tensor, in this order."""
    return tensor[order[0]] if len(order) == 1 else torch.cat([tensor[part] for part in order])


def _half(tensors: dict[str, Tensor], name: str, core: str) -> Tensor:
    left, right = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("ij...,jr,ip->pr...", tensors[core], right, left).contiguous()
    return left @ right


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a module's weight; empty where it has none."""
    return weight_shape(module) or ()


def operate(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `module` to `x` with another weight and bias."""
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias)
    if isinstance(module, nn.Embedding):
        return functional.embedding(x, weight)
    convolve: Callable[..., Tensor] = module._conv_forward
    return convolve(x, weight, bias)


def own_output(module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the module's own W x. By `forward`: the hooks on the module belong to the call that is going on."""
    return without(bias, module, module.forward(x))


def without(bias: Tensor | None, module: nn.Module, y: Tensor) -> Tensor:
    """Return a module's output `y` less its bias."""
    return y if bias is None else y - per_channel(module, bias, y)


def per_channel(module: nn.Module, vector: Tensor, data: Any) -> Tensor:
    """Return a vector with one entry per channel, shaped to go with `data`."""
    if isinstance(module, _ConvNd):
        return vector.reshape(-1, *(1 for _ in module.kernel_size))
    return vector
