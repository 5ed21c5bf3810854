"""Models without weights, put together while their weights are being read, and filled with them afterwards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import no_init_weights
from torch import nn

Settings = Mapping[str, Any]


@dataclass(slots=True, eq=False)
class _Made:
    cls: type[Any]
    settings: dict[str, Any]
    model: nn.Module

    def complete(self) -> None:
        """Have it compute the tensors that no file gives.

        Those that a file does give are better left out: SD3's table of positions takes five seconds.
        """
        if _lacks_some(self.model):
            self.model = skeleton(lambda: self.cls.from_config(self.settings))


class Skeletons:
    """Skeletons of diffusers' models by class and settings, each put together once."""

    def __init__(self) -> None:
        self._made: list[_Made] = []

    def prepare(self, cls: type[Any], settings: Settings) -> None:
        """Put one together, to be taken later."""
        self._one(cls, settings).complete()

    def shapes(self, cls: type[Any], settings: Settings) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its tensors by their names."""
        state = self._one(cls, settings).model.state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def take(self, cls: type[Any], settings: Settings) -> nn.Module:
        """Return one, which nobody else gets."""
        one = self._one(cls, settings)
        self._made.remove(one)
        one.complete()
        return one.model

    def _one(self, cls: type[Any], settings: Settings) -> _Made:
        found = next((one for one in self._made if one.cls is cls and one.settings == settings), None)
        if found is None:
            copy = dict(settings)
            with no_init_weights(), torch.device("meta"):
                found = _Made(cls, copy, cls.from_config(copy))
            self._made.append(found)
        return found


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the model of `make` without memory for its parameters, which nobody fills with random numbers either.

    Its buffers are there: a file need not have them.
    """
    with no_init_weights(), init_empty_weights():
        return make()


def _lacks_some(model: nn.Module) -> bool:
    """True if a model has tensors without numbers that no file gives: buffers that are not saved, tables of its own."""
    for module in model.modules():
        buffers = (module._buffers.get(name) for name in module._non_persistent_buffers_set)
        others = (value for name, value in vars(module).items() if name not in _GIVEN)
        if any(map(_has_empty, (*buffers, *others))):
            return True
    return False


_GIVEN = ("_parameters", "_buffers", "_modules")


def _has_empty(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_empty, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_empty, value))
    if type(value).__module__.startswith("diffusers.models") and not isinstance(value, nn.Module):
        return any(map(_has_empty, getattr(value, "__dict__", {}).values()))  # a helper: tables of positions, say
    return isinstance(value, torch.Tensor) and value.is_meta


def filled(model: nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    """Return `model` with these tensors as its own, in `dtype`; `weights` has all of its names, and gives up each."""
    for name, tensor in weights.items():
        weights[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
    model.load_state_dict(weights, assign=True)
    weights.clear()
    return model.to(dtype)
