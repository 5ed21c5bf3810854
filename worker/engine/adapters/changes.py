"""Changes of a module's output by an adapter: the mathematics of every algorithm.

A module computes y = W x + b. Each class here computes the difference of (W + ΔW) x + b from that, from x and y alone.
So the model's weights are never written: nothing has to be put back, a quantized or offloaded weight is as good as a
plain one, and several adapters add up. Formulas as in LyCORIS 3.4 (github.com/KohakuBlueleaf/LyCORIS) and, for DoRA,
as it was published (arXiv 2402.09353); every change is linear in the weight that a job gives it.

Tensors arrive as the file has them and move to the module's device and dtype when they are first used.
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

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the addition to the output `y` of `module` for the input `x`."""
        raise NotImplementedError

    def _like(self, y: Tensor) -> dict[str, Tensor]:
        """Return the tensors on the device and in the dtype of `y`; moved once."""
        for name, tensor in self._tensors.items():
            if tensor.device != y.device or tensor.dtype != y.dtype:
                self._tensors[name] = tensor.to(y.device, y.dtype)
        return self._tensors


class Delta(Change):
    """A ΔW that does not depend on W, and a Δb."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of ΔW, a convolution's kernel counted as columns."""
        raise NotImplementedError

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return ΔW, of any shape with the right number of entries."""
        raise NotImplementedError

    def weight(self, module: nn.Module, like: Tensor) -> Tensor:
        """Return ΔW in the shape of the module's weight."""
        return self.matrix(self._like(like)).reshape(_shape_of(module))

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return ΔW x + Δb."""
        return _operate(module, x, self.weight(module, y), self._tensors.get("bias"))


class LowRank(Delta):
    """LoRA: ΔW = up · down, for convolutions with an optional core `mid` between them (Tucker)."""

    def __init__(self, down: Tensor, up: Tensor, mid: Tensor | None, bias: Tensor | None, scale: float) -> None:
        super().__init__(down=down, up=up.float() * scale, mid=mid, bias=None if bias is None else bias.float() * scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of `up`, columns of `down` and the kernel of `mid`."""
        mid = self._tensors.get("mid")
        kernel = 1 if mid is None else mid[0, 0].numel()
        return self._tensors["up"].shape[0], self._tensors["down"][0].numel() * kernel

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return up · down, contracted over the rank."""
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        if "mid" in tensors:
            return torch.einsum("or,rs...,si->oi...", up, tensors["mid"], down)
        return up @ down

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

    def weight(self, module: nn.Module, like: Tensor) -> Tensor:
        """Return w1 ⊗ w2 in the shape of the module's weight."""
        shape = _shape_of(module)
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

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """ΔW x + Δb; a norm is asked with both weights, for not every one is linear in its own."""
        tensors = self._like(y)
        if isinstance(module, nn.Linear | _ConvNd | nn.Embedding):
            if self.has_weight:
                return super().added(module, x, y)
            return _per_channel(module, tensors["bias"], y).expand_as(y)
        changed = {
            name: parameter + tensors[name].to(parameter.dtype).reshape(parameter.shape)
            for name in ("weight", "bias")
            if name in tensors and (parameter := own_parameter(module, name)) is not None
        }
        return torch.func.functional_call(module, changed, (x,)) - y


class Whole(Change):
    """A layer's own new weight and bias in place of the model's: what peft saves of `modules_to_save`."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, module: nn.Module) -> None:
        own = own_parameter(module, "bias")
        super().__init__(weight=weight, bias=own if bias is None else bias, own_bias=own if weight is None else None)

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the new layer's output less that of the layer itself."""
        tensors = self._like(y)
        if "weight" not in tensors:
            return _per_channel(module, tensors["bias"] - tensors["own_bias"], y).expand_as(y)
        if isinstance(module, nn.Linear | _ConvNd | nn.Embedding):
            return _operate(module, x, tensors["weight"].reshape(_shape_of(module)), tensors.get("bias")) - y
        return torch.func.functional_call(module, tensors, (x,)) - y


class Rows(Delta):
    """Some rows of another change: a fused module's change as it applies to one of its parts."""

    def __init__(self, whole: Delta, total: tuple[int, int], order: Sequence[slice]) -> None:
        super().__init__()
        self._whole, self._total, self._order = whole, total, order

    @property
    def shape(self) -> tuple[int, int]:
        """Number of the rows taken, and the whole's columns."""
        return sum(len(range(*part.indices(self._total[0]))) for part in self._order), self._total[1]

    def weight(self, module: nn.Module, like: Tensor) -> Tensor:
        """Return the rows of the whole's ΔW."""
        fused = self._whole.weight(nn.Linear(self._total[1], self._total[0], bias=False, device="meta"), like)
        return take(fused, self._order).reshape(_shape_of(module))


class Decomposed(Change):
    """DoRA: W' = m · (W + ΔW) / ‖W + ΔW‖, the norm taken by rows, or by columns (LyCORIS' wd_on_output=False)."""

    def __init__(self, delta: Delta, magnitude: Tensor, module: nn.Module) -> None:
        weight = own_parameter(module, "weight").float()
        merged = weight + delta.weight(module, weight)
        self._by_rows = magnitude.numel() == magnitude.shape[0] and magnitude.numel() == merged.shape[0]
        table = merged.flatten(1) if self._by_rows else merged.transpose(0, 1).flatten(1)
        gain = magnitude.flatten().to(table) / table.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        super().__init__(gain=gain, bias=own_parameter(module, "bias"))
        self._delta = delta

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return W' x - W x, from ΔW x and the module's own output."""
        tensors = self._like(y)
        gain = tensors["gain"]
        if self._by_rows:
            gain = _per_channel(module, gain, y)
            return (gain - 1) * _without(tensors.get("bias"), module, y) + gain * self._delta.added(module, x, y)
        scaled = _per_channel(module, gain, x) * x
        return _own(module, scaled - x, tensors.get("bias")) + self._delta.added(module, scaled, y)


class Gain(Change):
    """IA3: ΔW = W · diag(v), or diag(v) · W."""

    def __init__(self, vector: Tensor, on_input: bool, module: nn.Module) -> None:
        super().__init__(vector=vector.flatten(), bias=own_parameter(module, "bias"))
        self._on_input = on_input

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output for v∘x, or v∘ its output for x, without its bias."""
        tensors = self._like(y)
        if self._on_input:
            return _own(module, _per_channel(module, tensors["vector"], x) * x, tensors.get("bias"))
        return _per_channel(module, tensors["vector"], y) * _without(tensors.get("bias"), module, y)


class Generalized(Change):
    """GLoRA: ΔW = s · (W · a1 · a2 + b1 · b2)."""

    def __init__(self, a1: Tensor, a2: Tensor, plain: LowRank, scale: float, module: nn.Module) -> None:
        super().__init__(a1=a1.flatten(1).float() * scale, a2=a2.flatten(1), bias=own_parameter(module, "bias"))
        self._plain = plain

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output for A x, plus B x."""
        tensors = self._like(y)
        last = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
        inner = functional.linear(functional.linear(last, tensors["a2"]), tensors["a1"])
        inner = inner if isinstance(module, nn.Linear) else inner.movedim(-1, 1)
        return _own(module, inner, tensors.get("bias")) + self._plain.added(module, x, y)


class Rotated(Change):
    """OFT: W' = rescale · R · W, R block-diagonal and orthogonal, by Cayley's map of the file's blocks."""

    def __init__(self, blocks: Tensor, rescale: Tensor | None, constraint: float, module: nn.Module) -> None:
        blocks = blocks.float()
        skew = blocks - blocks.transpose(1, 2)
        norm = skew.norm() + 1e-8
        if 0 < constraint < norm:
            skew = skew * constraint / norm
        unit = torch.eye(skew.shape[1], device=skew.device)
        super().__init__(
            rotation=(unit + skew) @ torch.linalg.inv(unit - skew),
            rescale=None if rescale is None else rescale.flatten(),
            bias=own_parameter(module, "bias"),
        )

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output rotated, less the output itself."""
        tensors = self._like(y)
        plain = _without(tensors.get("bias"), module, y)
        last = plain if isinstance(module, nn.Linear) else plain.movedim(1, -1)
        rotation = tensors["rotation"]
        rotated = torch.einsum("knm,...kn->...km", rotation, last.unflatten(-1, rotation.shape[:2])).flatten(-2)
        if "rescale" in tensors:
            rotated = rotated * tensors["rescale"]
        return (rotated if isinstance(module, nn.Linear) else rotated.movedim(-1, 1)) - plain


def take(tensor: Tensor, order: Sequence[slice]) -> Tensor:
    """Return rows of a tensor, in this order."""
    return tensor[order[0]] if len(order) == 1 else torch.cat([tensor[part] for part in order])


def _half(tensors: dict[str, Tensor], name: str, core: str) -> Tensor:
    left, right = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("ij...,jr,ip->pr...", tensors[core], right, left).contiguous()
    return left @ right


def _shape_of(module: nn.Module) -> tuple[int, ...]:
    return weight_shape(module) or ()


def _operate(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `module` to `x` with another weight and bias."""
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias)
    if isinstance(module, nn.Embedding):
        return functional.embedding(x, weight)
    convolve: Callable[..., Tensor] = module._conv_forward
    return convolve(x, weight, bias)


def _own(module: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the module's own W x. By `forward`: the hooks on the module belong to the call that is going on."""
    return _without(bias, module, module.forward(x))


def _without(bias: Tensor | None, module: nn.Module, y: Tensor) -> Tensor:
    return y if bias is None else y - _per_channel(module, bias, y)


def _per_channel(module: nn.Module, vector: Tensor, data: Any) -> Tensor:
    """Return a vector with one entry per channel, shaped to go with `data`."""
    if isinstance(module, _ConvNd):
        return vector.reshape(-1, *(1 for _ in module.kernel_size))
    return vector
