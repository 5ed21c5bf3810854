"""Components of one pipeline on several GPUs: each computes on its own, and what comes and goes is on the first one.

diffusers' own `device_map` is not used: it loads the components itself, past the checks of this loader, takes no single
file, moves to the CPU what does not fit, and returns what a VAE has encoded on the VAE's GPU, where img2img fails.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook
from torch import nn

from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel
from worker.core.model import DENOISERS
from worker.engine.cards import HOME

_DENOISERS = (*DENOISERS, *(f"{name}_2" for name in DENOISERS))


class _Home(ModelHook):  # type: ignore[misc]
    """What tells diffusers on which device a pipeline's latents are: it asks the first component's hook."""

    def __init__(self, device: torch.device) -> None:
        self.execution_device = device


class _OnCard:
    """The hooks of one component: a call from outside, of it or of a module in it, takes its tensors there and back."""

    def __init__(self, card: torch.device, home: torch.device) -> None:
        self._card = card
        self._home = home
        self._inside: list[nn.Module] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._inside.append(module)
        return (on_device(args, self._card), on_device(kwargs, self._card)) if len(self._inside) == 1 else None

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Called after a failure, too."""
        while self._inside and self._inside.pop() is not module:
            pass
        return None if self._inside else on_device(output, self._home)


def spread(pipe: Any, plan: LoadPlan) -> None:
    """Put every component of `pipe` on the GPU that the plan says. Raises UnsupportedModel for one it does not have."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    unknown = sorted(name for name, number in plan.cards.items() if number != HOME and name not in modules)
    if unknown:
        raise UnsupportedModel(
            f"device_map names {', '.join(unknown)[:200]}, which this {plan.pipeline} does not have; its components "
            f"with weights are {', '.join(sorted(modules))[:500]}.",
            field="model",
        )
    home = _device(plan, HOME)
    for name, part in modules.items():
        card = _device(plan, plan.cards.get(name, HOME))
        part.to(card)
        part._hf_hook = _Home(home)
        hooks = _OnCard(card, home)
        # Of a denoiser only itself is called from outside; its blocks are left as they are.
        for module in [part] if name in _DENOISERS else part.modules():
            module.register_forward_pre_hook(hooks.before, with_kwargs=True, prepend=True)
            module.register_forward_hook(hooks.after, always_call=True)


@contextmanager
def at_home(pipe: Any, plan: LoadPlan) -> Iterator[None]:
    """Have the parts that adapters brought into a pipeline say, as its own do, where its latents are."""
    brought = [] if not plan.cards else _without_hook(pipe)
    for part in brought:
        part._hf_hook = _Home(_device(plan, HOME))
    try:
        yield
    finally:
        for part in brought:
            del part._hf_hook


def _without_hook(pipe: Any) -> list[Any]:
    parts = {id(part): part for part in pipe.components.values() if isinstance(part, nn.Module)}
    return [part for part in parts.values() if not hasattr(part, "_hf_hook")]


def _device(plan: LoadPlan, number: int) -> torch.device:
    return torch.device(plan.device, number)


def on_device(value: Any, device: torch.device) -> Any:
    """Return `value` with all tensors in it on `device`; itself where they are there already."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        sent = {key: on_device(each, device) for key, each in value.items()}
        if all(sent[key] is each for key, each in value.items()):
            return value
        return sent if type(value) is dict else type(value)(**sent)
    if isinstance(value, list | tuple):
        items = [on_device(each, device) for each in value]
        if all(item is each for item, each in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
