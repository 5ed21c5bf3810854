"""Changes on a pipeline's modules for the length of a context."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.core.errors import UnsupportedModel
from worker.engine.adapters.changes import Change
from worker.engine.adapters.targets import modules_of

Weighted = tuple[Change, float]
Placed = tuple[str, str, Change, float]  # a module's component and path, the change, its weight


def by_target(changes: Sequence[Placed]) -> dict[tuple[str, str], list[Weighted]]:
    """Return the changes of each module, without those of weight 0."""
    targets: dict[tuple[str, str], list[Weighted]] = {}
    for component, path, change, weight in changes:
        if weight:
            targets.setdefault((component, path), []).append((change, weight))
    return targets


@contextmanager
def attached(pipe: Any, changes: Sequence[Placed]) -> Iterator[None]:
    """Let each module (component, path) add its changes, each times its weight, to its output.

    The modules stay as they are: hooks are put on and taken off. A change of weight 0 is not put on at all.
    """
    modules: dict[str, dict[str, nn.Module]] = {}
    with ExitStack() as stack:
        for (component, path), parts in by_target(changes).items():
            owner = getattr(pipe, component)
            if component not in modules:
                modules[component] = modules_of(owner)
            module = modules[component].get(path)
            if module is None:
                stack.enter_context(_written(owner.get_parameter(path), parts))
            else:
                handle = module.register_forward_hook(_adding(parts), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _adding(parts: Sequence[Weighted]) -> Callable[..., Tensor | None]:
    """Return a hook that adds the changes to a module's output."""
    inside = False

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
        nonlocal inside
        if inside:  # a change asks the module itself
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if x.is_floating_point() and x.dtype != y.dtype:
            x = x.to(y.dtype)
        inside = True
        try:
            total = y
            for change, weight in parts:
                total = torch.add(total, change.added(module, x, y), alpha=weight)
        finally:
            inside = False
        return total

    return add


@contextmanager
def _written(parameter: nn.Parameter, parts: Sequence[tuple[Any, float]]) -> Iterator[None]:
    """Write other numbers into a parameter that belongs to no layer; its own are put back, untouched."""
    if parameter.is_meta or not parameter.is_floating_point():
        raise UnsupportedModel(
            "loras: this LoRA changes a table of the model, which needs its plain weights on the device; "
            "use a larger device or another LoRA.",
            field="loras",
        )
    original = parameter.data
    total = original.clone()
    for change, weight in parts:
        total.add_(change.values(original), alpha=weight)
    parameter.data = total
    try:
        yield
    finally:
        # Offloading may have moved the parameter meanwhile.
        parameter.data = original.to(parameter.device)
