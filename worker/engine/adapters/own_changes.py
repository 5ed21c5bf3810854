"""Changes that depend on the weight that they change: whole layers, DoRA, IA3, GLoRA and OFT."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from worker.engine.adapters.changes import Change, Delta, LowRank, operate, own_output, per_channel, shape_of, without
from worker.engine.adapters.targets import own_parameter


class Whole(Change):
    """A layer's own new weight and bias in place of the model's: what peft saves of `modules_to_save`."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, module: nn.Module) -> None:
        own = own_parameter(module, "bias")
        super().__init__(weight=weight, bias=own if bias is None else bias, own_bias=own if weight is None else None)

    def difference(self, own: Tensor) -> Tensor | None:
        """Return the new weight less the layer's own."""
        tensors = self._like(own)
        return tensors["weight"].reshape(own.shape) - own if "weight" in tensors else None

    def bias_difference(self, own: Tensor) -> Tensor | None:
        """Return the new bias less the layer's own."""
        return self._like(own)["bias"].reshape(own.shape) - own

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the new layer's output less that of the layer itself."""
        tensors = self._like(y)
        if "weight" not in tensors:
            return per_channel(module, tensors["bias"] - tensors["own_bias"], y).expand_as(y)
        if isinstance(module, nn.Linear | _ConvNd | nn.Embedding):
            return operate(module, x, tensors["weight"].reshape(shape_of(module)), tensors.get("bias")) - y
        return torch.func.functional_call(module, tensors, (x,)) - y


class Decomposed(Change):
    """DoRA: W' = m · (W + ΔW) / ‖W + ΔW‖, the norm taken by rows, or by columns (LyCORIS' wd_on_output=False)."""

    def __init__(self, delta: Delta, magnitude: Tensor, module: nn.Module) -> None:
        weight = own_parameter(module, "weight").float()
        merged = weight + delta.weight(tuple(weight.shape), weight)
        self._by_rows = magnitude.numel() == magnitude.shape[0] and magnitude.numel() == merged.shape[0]
        table = merged.flatten(1) if self._by_rows else merged.transpose(0, 1).flatten(1)
        gain = magnitude.flatten().to(table) / table.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        super().__init__(gain=gain, bias=own_parameter(module, "bias"))
        self._delta = delta

    def merges(self, module: nn.Module) -> bool:
        """True unless its inner change has a bias, and the module none."""
        return self._delta.merges(module)

    def difference(self, own: Tensor) -> Tensor | None:
        """Return W' - W."""
        gain = self._like(own)["gain"]
        axis = 0 if self._by_rows else 1
        gain = gain.reshape(*(-1 if at == axis else 1 for at in range(own.ndim)))
        return gain * (own + self._delta.weight(tuple(own.shape), own)) - own

    def bias_difference(self, own: Tensor) -> Tensor | None:
        """Return the inner change's, turned with its rows."""
        bias = self._delta.bias_difference(own)
        return bias if bias is None or not self._by_rows else bias * self._like(own)["gain"]

    def rest(self) -> None:
        """Drop what was made ready of the inner change too."""
        super().rest()
        self._delta.rest()

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return W' x - W x, from ΔW x and the module's own output."""
        tensors = self._like(y)
        gain = tensors["gain"]
        if self._by_rows:
            gain = per_channel(module, gain, y)
            return (gain - 1) * without(tensors.get("bias"), module, y) + gain * self._delta.added(module, x, y)
        scaled = per_channel(module, gain, x) * x
        return own_output(module, scaled - x, tensors.get("bias")) + self._delta.added(module, scaled, y)


class Gain(Change):
    """IA3: ΔW = W · diag(v), or diag(v) · W."""

    def __init__(self, vector: Tensor, on_input: bool, module: nn.Module) -> None:
        super().__init__(vector=vector.flatten(), bias=own_parameter(module, "bias"))
        self._on_input = on_input

    def merges(self, module: nn.Module) -> bool:
        """True unless its channels are those of a group."""
        return getattr(module, "groups", 1) == 1 or not self._on_input

    def difference(self, own: Tensor) -> Tensor | None:
        """Return W times the vector, along its columns or its rows."""
        axis = 1 if self._on_input else 0
        return own * self._like(own)["vector"].reshape(*(-1 if at == axis else 1 for at in range(own.ndim)))

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output for v∘x, or v∘ its output for x, without its bias."""
        tensors = self._like(y)
        if self._on_input:
            return own_output(module, per_channel(module, tensors["vector"], x) * x, tensors.get("bias"))
        return per_channel(module, tensors["vector"], y) * without(tensors.get("bias"), module, y)


class Generalized(Change):
    """GLoRA: ΔW = s · (W · a1 · a2 + b1 · b2)."""

    def __init__(self, a1: Tensor, a2: Tensor, plain: LowRank, scale: float, module: nn.Module) -> None:
        super().__init__(a1=a1.flatten(1).float() * scale, a2=a2.flatten(1), bias=own_parameter(module, "bias"))
        self._plain = plain

    def merges(self, module: nn.Module) -> bool:
        """True of a linear layer."""
        return isinstance(module, nn.Linear)

    def difference(self, own: Tensor) -> Tensor | None:
        """Return W · a1 · a2 + b1 · b2, the scale within a1 and b1."""
        tensors = self._like(own)
        return own @ tensors["a1"] @ tensors["a2"] + self._plain.weight(tuple(own.shape), own)

    def rest(self) -> None:
        """Drop what was made ready of the plain part too."""
        super().rest()
        self._plain.rest()

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output for A x, plus B x."""
        tensors = self._like(y)
        last = x if isinstance(module, nn.Linear) else x.movedim(1, -1)
        inner = functional.linear(functional.linear(last, tensors["a2"]), tensors["a1"])
        inner = inner if isinstance(module, nn.Linear) else inner.movedim(-1, 1)
        return own_output(module, inner, tensors.get("bias")) + self._plain.added(module, x, y)


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

    def merges(self, module: nn.Module) -> bool:
        """True of every layer with a weight."""
        return True

    def difference(self, own: Tensor) -> Tensor | None:
        """Return rescale · R · W - W."""
        tensors = self._like(own)
        rotation, table = tensors["rotation"], own.flatten(1)
        rotated = torch.einsum("knm,knc->kmc", rotation, table.unflatten(0, rotation.shape[:2])).flatten(0, 1)
        if "rescale" in tensors:
            rotated = rotated * tensors["rescale"][:, None]
        return (rotated - table).reshape(own.shape)

    def added(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the module's output rotated, less the output itself."""
        tensors = self._like(y)
        plain = without(tensors.get("bias"), module, y)
        last = plain if isinstance(module, nn.Linear) else plain.movedim(1, -1)
        rotation = tensors["rotation"]
        rotated = torch.einsum("knm,...kn->...km", rotation, last.unflatten(-1, rotation.shape[:2])).flatten(-2)
        if "rescale" in tensors:
            rotated = rotated * tensors["rescale"]
        return (rotated if isinstance(module, nn.Linear) else rotated.movedim(-1, 1)) - plain
