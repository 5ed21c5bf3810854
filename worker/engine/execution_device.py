"""The device of a pipeline that stays on it, found once for a call: diffusers looks through all modules for hooks.

For SDXL these are 2,000 modules, before the first step of each job and while the device waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from diffusers import DiffusionPipeline

from worker.core.device import LoadPlan

_KNOWN = "_device_of_this_call"
_searched: Any = DiffusionPipeline._execution_device


def _execution_device(pipe: Any) -> Any:
    """Return the device that is known for this call, else what diffusers finds."""
    return pipe.__dict__.get(_KNOWN) or _searched.fget(pipe)


setattr(DiffusionPipeline, "_execution_device", property(_execution_device))  # noqa: B010 -- a class's own property


@contextmanager
def device_known(pipe: Any, plan: LoadPlan) -> Iterator[None]:
    """Spare the calls of `pipe` in here the search, where all of it is on one device and nothing of it moves."""
    device = _device_of(pipe) if plan.offload == "none" and not plan.cards else None
    if device is None:
        yield
        return
    pipe.__dict__[_KNOWN] = device  # not as an attribute: diffusers takes some of those for parts
    try:
        yield
    finally:
        del pipe.__dict__[_KNOWN]


def _device_of(pipe: Any) -> torch.device | None:
    """Return the device of the first part that is on one, as diffusers does, else the first part's."""
    modules = [part for part in getattr(pipe, "components", {}).values() if isinstance(part, torch.nn.Module)]
    tensors = (next(chain(module.parameters(), module.buffers()), None) for module in modules)
    devices = [tensor.device for tensor in tensors if tensor is not None]
    return next((each for each in devices if each.type not in ("cpu", "meta")), devices[0] if devices else None)
