"""The match of a LoRA file and a pipeline: each module of the file gets its targets, or counts as lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from worker.core.errors import UnsupportedModel
from worker.core.lora import DENOISER, LoraKeys, ModuleKeys, Scaling
from worker.engine.adapters.changes import (
    Change,
    Delta,
    Difference,
    Hadamard,
    Kronecker,
    LowRank,
    Rows,
    take,
)
from worker.engine.adapters.own_changes import Decomposed, Gain, Generalized, Rotated, Whole
from worker.engine.adapters.targets import Target, Targets, modules_of, weight_shape
from worker.engine.devices import is_out_of_memory

# Names of the network in a pipeline that a LoRA's main part belongs to. Wan 2.2 has two, and both get it.
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
# Trainers number or name the encoders by their kinds, diffusers by their order: FLUX.1's T5 is the third of kohya and
# the second of diffusers. The first that has the module is meant.
_ENCODERS = {
    "text_encoder_3": ("text_encoder_3", "text_encoder_2", "text_encoder"),
    "text_encoder_4": ("text_encoder_4", "text_encoder"),
    "clip_l": ("text_encoder", "text_encoder_2"),
}


@dataclass(eq=False)
class MatchedLora:
    """The changes of a LoRA in one pipeline (component, path, change), and the share of the file that matched."""

    changes: list[tuple[str, str, Change]] = field(default_factory=list)
    matched: int = 0
    total: int = 0
    core_matched: int = 0  # of the denoiser; of the text encoders where the file has nothing else
    core_total: int = 0
    absent: list[str] = field(default_factory=list)  # of the core, known to be no part of this variant of the family
    lost: list[str] = field(default_factory=list)
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


# The targets of components of resident pipelines, and the modules and parameters that they had. Engine's thread only.
_TARGETS: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Targets]] = WeakKeyDictionary()


def _targets_of(component: nn.Module, modules: Mapping[str, nn.Module]) -> Targets:
    """Return the targets of a component, made anew only where a module or a parameter has come or gone."""
    size = len(modules), sum(len(module._parameters) for module in modules.values())
    known, targets = _TARGETS.get(component, (None, None))
    if targets is None or known != size:
        targets = Targets(component)
        _TARGETS[component] = size, targets
    return targets


class _Mismatch(Exception):
    """An error: a module's tensors do not have the sizes that its target needs."""


def match_lora(pipe: Any, keys: LoraKeys, tensors: Mapping[str, Tensor], scaling: Scaling) -> MatchedLora:
    """Find the targets of every module of the file. Raises UnsupportedModel for an algorithm that cannot be applied."""
    components = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    matcher = Matcher(components, tensors, scaling)
    in_denoiser = {module.component == DENOISER for module in keys.modules}
    matched = matcher.matched
    matched.embeddings = {
        token: {part: tensors[key] for part, key in parts.items()} for token, parts in keys.embeddings.items()
    }
    # Whole modules before fused ones: some files hold both, for two programs, and each is to be added once.
    for module, targets in sorted(
        ((module, matcher.targets(module)) for module in keys.modules),
        key=lambda pair: max(map(len, pair[1].values()), default=0) > 1,
    ):
        placed = matcher.place(module, targets)
        matched.total += 1
        matched.matched += placed
        if (module.component == DENOISER) == (True in in_denoiser):
            matched.core_total += 1
            matched.core_matched += placed
    for key in keys.unknown:
        matched.total, matched.core_total = matched.total + 1, matched.core_total + 1
        matched.lost.append(f"{key} (not a part of any known algorithm)")
    return matched


class Matcher:
    """The search for targets of a file's modules in the components of a pipeline."""

    def __init__(self, components: dict[str, nn.Module], tensors: Mapping[str, Tensor], scaling: Scaling) -> None:
        self.matched = MatchedLora()
        self._components = components
        self._tables: dict[str, Targets] = {}
        self._modules: dict[str, dict[str, nn.Module]] = {}
        self._tensors = tensors
        self._scaling = scaling
        self._taken: set[tuple[str, str]] = set()

    def targets(self, module: ModuleKeys) -> dict[str, tuple[Target, ...]]:
        """Return the components that have targets for the module, and the targets there."""
        if module.component == DENOISER:
            by_component = {name: self._table(name).find(module.name) for name in DENOISERS if name in self._components}
            return {name: targets for name, targets in by_component.items() if targets}
        for name in _ENCODERS.get(module.component, (module.component,)):
            if name in self._components and (targets := self._table(name).find(module.name)):
                return {name: targets}
        return {}

    def place(self, module: ModuleKeys, by_component: Mapping[str, tuple[Target, ...]]) -> bool:
        """Add the module's changes to the match; False, and noted as lost, when it has no target."""
        if module.algorithm is None or not by_component:
            return self._lose(module, self._why_nowhere(module))
        tensors = {role: self._tensors[key] for role, key in module.keys.items()}
        reason, matched = "", False
        for component, targets in by_component.items():
            if all((component, target.path) in self._taken for target in targets):
                matched = True  # the same change under another name
                continue
            try:
                changes = [
                    (component, target.path, change)
                    for index, target in enumerate(targets)
                    for change in self._changes(component, targets, index, module, tensors)
                ]
            except _Mismatch as problem:
                reason = str(problem)
                continue
            except (RuntimeError, IndexError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                reason = "its tensors do not go together"
                continue
            self.matched.changes += changes
            self._taken |= {(component, path) for component, path, _ in changes}
            matched = True
        return matched or self._lose(module, reason)

    def _lose(self, module: ModuleKeys, reason: str) -> bool:
        self.matched.lost.append(f"{module.name} ({reason})")
        return False

    def _why_nowhere(self, module: ModuleKeys) -> str:
        """Say why a module has no target; one that only the family's other variants have is noted as absent."""
        if module.algorithm is None:
            return "incomplete"
        denoisers = [name for name in DENOISERS if name in self._components]
        if module.component == DENOISER and all(self._table(name).lacks(module.name) for name in denoisers):
            self.matched.absent.append(module.name)
            return "not in this variant"
        return "no such module"

    def _table(self, component: str) -> Targets:
        if component not in self._tables:
            self._tables[component] = _targets_of(self._components[component], self._modules_of(component))
        return self._tables[component]

    def _modules_of(self, component: str) -> Mapping[str, nn.Module]:
        if component not in self._modules:
            self._modules[component] = modules_of(self._components[component])
        return self._modules[component]

    def _module_at(self, component: str, path: str) -> nn.Module | None:
        """Return the module at `path`; None where a bare parameter is."""
        return self._modules_of(component).get(path)

    def _changes(
        self, component: str, targets: Sequence[Target], index: int, keys: ModuleKeys, tensors: Mapping[str, Tensor]
    ) -> list[Change]:
        """Return the changes of a module of the file on the `index`-th of its targets."""
        target, algorithm = targets[index], keys.algorithm or ""
        module = self._module_at(component, target.path)
        if module is None:  # a bare parameter: it has a value, but no input and output
            if algorithm != "full" or "diff_b" in tensors or len(targets) > 1:
                raise _Mismatch("a table, which takes whole differences only")
            return [Difference(_sized(tensors["diff"], target), None)]
        start = sum(other.rows for other in targets[:index])
        rows = Order(sum(other.rows for other in targets), start, target)
        changes = _beside(tensors, rows, module)
        kind = algorithm.removesuffix("+dora") if algorithm != "dora" else "lora"
        scale = self.factor(component, target, keys.name, tensors)
        if kind in _DELTAS:
            changes.append(_delta(kind, tensors, scale, rows, module))
        elif kind == "glora":
            changes.append(_generalized(tensors, scale, rows, module))
        elif kind == "ia3":
            changes.append(_gain(tensors, rows, module))
        elif kind == "oft":
            changes.append(_rotation(tensors, rows, module))
        return changes

    def factor(self, component: str, target: Target, name: str, tensors: Mapping[str, Tensor]) -> float:
        """Return the factor on the change of a module of the file at one of its targets."""
        alpha = tensors.get("alpha")
        settings = self._scaling.settings
        if component in DENOISERS and component not in settings:  # a second denoiser has the settings of the first
            component = next((name for name in DENOISERS if name in settings), component)
        names = (target.path, name)  # peft's patterns are for the model that was trained: diffusers' or the original
        return self._scaling.factor(component, names, rank_of(tensors), None if alpha is None else float(alpha))


class Order:
    """The rows of a file's module that belong to one target."""

    def __init__(self, total: int, start: int, target: Target) -> None:
        self.total, self.target = total, target
        stop, middle = start + target.rows, start + target.rows // 2
        self.slices = [slice(middle, stop), slice(start, middle)] if target.swapped else [slice(start, stop)]
        self.fused = total != target.rows or target.swapped

    def of(self, tensor: Tensor) -> Tensor:
        """Return the target's rows of a tensor that has them all."""
        if tensor.shape[0] != self.total:
            raise _Mismatch(f"{tensor.shape[0]} rows instead of {self.total}")
        return take(tensor, self.slices) if self.fused else tensor

    def check(self, shape: tuple[int, int]) -> None:
        """Raise _Mismatch unless the whole change, rows and columns, is as large as all its targets together."""
        expected = (self.total, self.target.columns)
        if shape != expected:
            raise _Mismatch(f"{shape[0]} x {shape[1]} instead of {expected[0]} x {expected[1]}")


def _low_rank(tensors: Mapping[str, Tensor], scale: float, rows: Order) -> Delta:
    return _product(tensors["up"], tensors["down"], tensors.get("mid"), tensors.get("up_bias"), scale, rows)


def _product(up: Tensor, down: Tensor, mid: Tensor | None, bias: Tensor | None, scale: float, rows: Order) -> LowRank:
    middle = down if mid is None else mid
    if _width(up) != middle.shape[0] or (mid is not None and mid.shape[1] != down.shape[0]):
        raise _Mismatch("its two halves differ in rank")
    kernel = 1 if mid is None else mid[0, 0].numel()
    rows.check((up.shape[0], _width(down) * kernel))
    # peft adds the bias of `lora_B` inside the scale.
    return LowRank(down, rows.of(up), mid, None if bias is None else rows.of(bias), scale)


def _width(tensor: Tensor) -> int:
    """Return the numbers in one row; of a tensor without rows, or of one number, an error as by indexing."""
    return int(tensor.numel() // tensor.shape[0] if tensor.ndim and tensor.shape[0] else tensor[0].numel())


def _hadamard(tensors: Mapping[str, Tensor], scale: float, rows: Order) -> Delta:
    return _some_rows(Hadamard(_renamed(tensors, "hada_"), scale), rows)


def _kronecker(tensors: Mapping[str, Tensor], scale: float, rows: Order) -> Delta:
    return _some_rows(Kronecker(_renamed(tensors, "lokr_"), scale), rows)


_DELTAS = {"lora": _low_rank, "loha": _hadamard, "lokr": _kronecker}


def _delta(kind: str, tensors: Mapping[str, Tensor], scale: float, rows: Order, module: nn.Module) -> Change:
    """Return a change of low rank or of products, with DoRA's magnitude where the file has one."""
    if kind != "lora" or "mid" in tensors:
        # Once without numbers: tensors that cannot be multiplied are to fail here, and not in the middle of an image.
        # The shapes of two plain halves were compared already, and this takes longer than all else.
        without_data = {role: tensor.to("meta") for role, tensor in tensors.items()}
        shape = weight_shape(module) or ()
        _DELTAS[kind](without_data, 1.0, rows).weight(shape, torch.empty(0, device="meta"))
    delta = _DELTAS[kind](tensors, scale, rows)
    magnitude = tensors.get("dora_scale")
    if magnitude is None:
        return delta
    if magnitude.shape[0] == magnitude.numel():
        magnitude = rows.of(magnitude)
    elif rows.fused:
        raise _unsupported("DoRA normed by columns", rows.target)
    _check_length(magnitude, (rows.target.rows, rows.target.columns // _kernel(module)))
    return Decomposed(delta, magnitude, module)


def _beside(tensors: Mapping[str, Tensor], rows: Order, module: nn.Module) -> list[Change]:
    """Return the changes that go along with any algorithm, or stand alone: whole layers and differences."""
    changes = []
    if "whole" in tensors or "whole_bias" in tensors:
        changes.append(_whole(tensors, rows, module))
    if "diff" in tensors or "diff_b" in tensors:
        changes.append(_difference(tensors, rows, module))
    return changes


def _difference(tensors: Mapping[str, Tensor], rows: Order, module: nn.Module) -> Change:
    weight, bias = tensors.get("diff"), tensors.get("diff_b")
    if weight is not None:
        rows.check(Difference(weight, None).shape)
    if bias is not None and not isinstance(module, nn.Linear | _ConvNd) and getattr(module, "bias", None) is None:
        raise _Mismatch("no bias there")
    return Difference(None if weight is None else rows.of(weight), None if bias is None else rows.of(bias))


def _whole(tensors: Mapping[str, Tensor], rows: Order, module: nn.Module) -> Change:
    weight, bias = tensors.get("whole"), tensors.get("whole_bias")
    if weight is not None:
        rows.check(Difference(weight, None).shape)
    if bias is not None and getattr(module, "bias", None) is None:
        raise _Mismatch("no bias there")
    return Whole(None if weight is None else rows.of(weight), None if bias is None else rows.of(bias), module)


def _generalized(tensors: Mapping[str, Tensor], scale: float, rows: Order, module: nn.Module) -> Change:
    a1, a2, b1, b2 = (tensors[role] for role in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] != rows.total:  # as GLoRA was first written: the halves change places
        a1, a2, b1, b2 = a2, a1, b2, b1
    plain = _product(b1, b2, tensors.get("bm"), None, scale, rows)
    inputs = rows.target.columns // _kernel(module)
    if a1.flatten(1).shape != (inputs, a2.shape[0]) or a2.flatten(1).shape[1] != inputs:
        raise _Mismatch(f"{a1.shape[0]} channels instead of {inputs}")
    return Generalized(a1, a2, plain, scale, module)


def _gain(tensors: Mapping[str, Tensor], rows: Order, module: nn.Module) -> Change:
    vector, on_input = tensors["weight"].flatten(), bool(tensors["on_input"])
    if not on_input:
        return Gain(rows.of(vector), False, module)
    _check_length(vector, (rows.target.columns // _kernel(module),))
    return Gain(vector, True, module)


def _rotation(tensors: Mapping[str, Tensor], rows: Order, module: nn.Module) -> Change:
    blocks, rescale = tensors["oft_blocks"], tensors.get("rescale")
    if rows.fused:
        raise _unsupported("OFT over fused layers", rows.target)
    if blocks.ndim != 3 or blocks.shape[0] * blocks.shape[1] != rows.total or blocks.shape[1] != blocks.shape[2]:
        raise _Mismatch(f"blocks for {blocks.shape[0] * blocks.shape[1]} rows instead of {rows.total}")
    if rescale is not None:
        _check_length(rescale, (rows.total,))
    alpha = tensors.get("alpha")
    return Rotated(blocks, rescale, 0.0 if alpha is None else float(alpha) * rows.total, module)


def _some_rows(whole: Delta, rows: Order) -> Delta:
    rows.check(whole.shape)
    return Rows(whole, (rows.total, rows.target.columns), rows.slices) if rows.fused else whole


def _renamed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {role.removeprefix(prefix): tensor for role, tensor in tensors.items() if role.startswith(prefix)}


_RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


def rank_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the rank that an alpha is divided by. Two whole LoKr factors have none: LyCORIS then scales by 1."""
    if "a2" in tensors:
        return int(min(tensors["a2"].shape[:2]))
    return next((tensors[role].shape[0] for role in _RANKED if role in tensors), 0)


def _check_length(vector: Tensor, allowed: Sequence[int]) -> None:
    if vector.numel() not in allowed:
        raise _Mismatch(f"{vector.numel()} channels instead of {' or '.join(map(str, dict.fromkeys(allowed)))}")


def _kernel(module: nn.Module) -> int:
    size = 1
    for side in getattr(module, "kernel_size", ()):
        size *= side
    return size


def _sized(tensor: Tensor, target: Target) -> Tensor:
    if tensor.numel() != target.rows * target.columns:
        raise _Mismatch(f"{tensor.numel()} numbers instead of {target.rows * target.columns}")
    return tensor


def _unsupported(subject: str, target: Target) -> UnsupportedModel:
    return UnsupportedModel(
        f"loras: {subject} (at {target.path}) cannot be applied exactly; use another file of this LoRA.", field="loras"
    )
