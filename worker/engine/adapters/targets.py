"""Targets of a LoRA's changes: the modules of a component by every name that a file may use for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from worker.core.errors import UnsupportedModel
from worker.engine.adapters.names import aliases, flat
from worker.engine.adapters.variants import only_in_variants


@dataclass(frozen=True, slots=True)
class Target:
    """A module of a component, or a bare parameter of one, that takes one part of a file's module."""

    path: str
    rows: int
    columns: int
    swapped: bool = False


class Targets:
    """The modules of one component. Built in milliseconds from names and shapes: nothing is read or moved."""

    def __init__(self, component: nn.Module) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path, module in modules_of(component).items():
            shape = weight_shape(module)
            if path and shape is not None:
                self._shapes[path] = shape
            elif path or shape is None:
                for name, parameter in module.named_parameters(recurse=False):
                    # Tables that belong to a block: Wan's `scale_shift_table`, for example.
                    self._shapes[f"{path}.{name}".lstrip(".")] = tuple(parameter.shape)
        self._names: dict[str, dict[int, Target]] = {}
        for path in self._shapes:
            self._names[flat(path)] = {0: self._target(path, False)}
            # transformers keeps CLIP's layers below `text_model.` or not, by its version.
            bare = path.removeprefix("text_model.")
            for name in (bare, f"text_model.{bare}"):
                self._names.setdefault(flat(name), {0: self._target(path, False)})
        for path, alias in aliases(self._shapes):
            parts = self._names.setdefault(flat(alias.name), {})
            parts.setdefault(alias.part, self._target(path, alias.swapped))
            if path.startswith(("text_model.", "encoder.")):
                self._names.setdefault(flat(f"text_model.{alias.name}"), {0: self._target(path, False)})
        # The Open Model Initiative's names (OneTrainer) keep the parts of a fused layer apart: `qkv.0`, `qkv.1` …
        for name, parts in list(self._names.items()):
            if len(parts) > 1:
                for index, target in parts.items():
                    self._names.setdefault(f"{name}_{index}", {0: target})

    def find(self, name: str) -> tuple[Target, ...]:
        """Return the modules that the file's `name` stands for, in the order of their rows; none without a target."""
        parts = self._names.get(flat(name), {})
        return tuple(parts[index] for index in sorted(parts))

    def lacks(self, name: str) -> bool:
        """True if `name` is known to be of a module that only some variants have, and no block here has one like it."""
        if not only_in_variants(flat(name)):
            return False
        return _any_block(flat(name)) not in self._patterns

    @cached_property
    def _patterns(self) -> frozenset[str]:
        return frozenset(map(_any_block, self._names))

    @property
    def paths(self) -> Mapping[str, tuple[int, ...]]:
        """The path of every target, with the shape of its weight."""
        return self._shapes

    def _target(self, path: str, swapped: bool) -> Target:
        shape = self._shapes[path]
        return Target(path, shape[0] if shape else 1, _product(shape[1:]), swapped)


def modules_of(component: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a component by their paths, as `named_modules` yields them, in a fifth of its time."""
    modules: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", component)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        modules[path] = module
        start = f"{path}." if path else ""
        waiting += [(start + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return modules


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a module's weight as it computes, also where it is quantized; None when it has none."""
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None  # attention of torch's own reads its weights and never calls it: no hook would answer
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, _ConvNd):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if isinstance(module, nn.Embedding):
        return (module.num_embeddings, module.embedding_dim)
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, nn.Parameter) and not list(module.children()) else None


def own_parameter(module: nn.Module, name: str) -> Any:
    """Return a parameter's tensor wherever it is now, or None: accelerate keeps an offloaded module's beside it.

    Raises UnsupportedModel for weights that are stored quantized.
    """
    value: Any = getattr(module, name, None)
    if value is None:
        return None
    if value.is_meta:
        value = getattr(getattr(module, "_hf_hook", None), "weights_map", {name: value})[name]
    plain = value.is_floating_point() and (name != "weight" or tuple(value.shape) == weight_shape(module))
    if value.is_meta or not plain:
        raise UnsupportedModel(
            "loras: this LoRA depends on the model's own weights, and this model's are quantized or not in memory; "
            "use the unquantized model, or a plain LoRA.",
            field="loras",
        )
    return value.detach()


def _any_block(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
