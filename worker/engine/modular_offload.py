"""Offloading of a modular pipeline's parts, which diffusers offers for ordinary ones: one part on the device at a time.

`accelerate` runs the hooks: before a part's `forward`, and before what diffusers marks as an entry beside it, such as
an autoencoder's `decode`.
"""

from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device


class Shelf:
    """A place on the device for one part at a time; the others wait in main memory."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._present: torch.nn.Module | None = None

    def fetch(self, part: torch.nn.Module) -> None:
        """Put `part` on the device, and the one that was there back."""
        if self._present is not part:
            self.clear()
            part.to(self.device)
            self._present = part

    def holds(self, part: torch.nn.Module | None) -> bool:
        """True while `part` is the one on the device; None while none is."""
        return self._present is part

    def clear(self) -> None:
        """Put the part that is on the device back into main memory."""
        if self._present is not None:
            self._present.to("cpu")
            self._present = None


class _Fetched(ModelHook):  # type: ignore[misc]
    """A hook that has its part fetched before each call. Blocks ask for `execution_device`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.execution_device = shelf.device

    def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        """Start with the part in main memory."""
        return module.to("cpu")

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Fetch the part, and bring the call's tensors to it."""
        self._shelf.fetch(module)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def enable_model_cpu_offload(pipe: Any, device: str) -> None:
    """Keep one whole part of `pipe` on the device at a time."""
    shelf = pipe._shelf = Shelf(device)
    for part in _modules(pipe):
        add_hook_to_module(part, _Fetched(shelf))
        # Some blocks call the layers of a part, not the part: Ideogram 4 reads its text encoder so.
        for layer in [layer for layer in part.modules() if layer is not part]:
            layer.register_forward_pre_hook(lambda _, inputs, part=part: shelf.fetch(part))


def enable_sequential_cpu_offload(pipe: Any, device: str) -> None:
    """Keep one layer of one part of `pipe` on the device at a time: slow, and it needs next to no memory."""
    for part in _modules(pipe):
        cpu_offload(part, torch.device(device), offload_buffers=len(part._parameters) > 0)


def maybe_free_model_hooks(pipe: Any) -> None:
    """Take the part off the device that a call, ended or not, left there."""
    shelf = getattr(pipe, "_shelf", None)
    if shelf is not None:
        shelf.clear()


def _modules(pipe: Any) -> list[torch.nn.Module]:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [part.to("cpu") for part in dict.fromkeys(parts)]
