"""Cards that do not exist: tensors on `card:0`, `card:1` … that compute on the CPU, and refuse to be mixed as GPUs do.

A card's tensor holds a CPU tensor. Each operation is checked first: all tensors that it takes have to be on one device,
but for copies and numbers without a dimension. Nothing here knows how a pipeline is spread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

KIND = "card"
COUNT = 2
_CPU = torch.device("cpu")
_COPIES = ("_to_copy", "copy_", "_local_scalar_dense", "equal")
_ASIDE = ("index", "index_put", "index_put_")  # take their indices from the CPU, too


class _Hook(_DummyPrivateUse1Hook):
    """What tells torch of the cards: that there are none, so that nobody else takes them for this machine's."""

    def is_available(self) -> bool:
        return False


class _Module(_DummyBackendModule):
    """What torch asks of the cards for everybody: no card has a state of random numbers to keep."""

    def device_count(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(KIND, backend_module=_Module(), hook=_Hook())


class Mixed(RuntimeError):
    """Tensors of several devices in one operation."""


class CardTensor(torch.Tensor):
    """A tensor on a card."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "CardTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )

    def __init__(self, held: torch.Tensor, device: torch.device) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Cards(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Makes on the CPU what torch makes of Python's own numbers below every mode, and sends it on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or _CPU).type == KIND:
            return func(*args, **kwargs | {"device": _CPU}).to(kwargs["device"])
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        return func(*args, **kwargs)


@contextmanager
def fake_cards() -> Iterator[None]:
    """Have the cards: tensors can be made there and sent there."""
    with _Made(), _Cards():
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    taken = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    devices = {each.device for each in taken if each.ndim}
    cards = {device for device in (each.device for each in taken) if device.type == KIND}
    if name not in _COPIES and len(devices - ({_CPU} if name in _ASIDE else set())) > 1:
        raise Mixed(f"{func}: tensors on {', '.join(sorted(map(str, devices)))}")
    target = next(iter(cards), _CPU) if len(cards) == 1 else taken[0].device if taken else _CPU
    if (asked := kwargs.get("device")) is not None:
        target = torch.device(asked)
        kwargs = kwargs | {"device": _CPU if target.type == KIND else target}
    if target.type == KIND and target.index is None:
        target = torch.device(KIND, 0)
    if kwargs.get("pin_memory"):
        kwargs = kwargs | {"pin_memory": False}
    output = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if name.endswith("_") and taken:  # what is changed in its place stays itself
        return args[0]
    if target.type != KIND:
        return output
    return tree_map(lambda each: CardTensor(each, target) if isinstance(each, torch.Tensor) else each, output)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, CardTensor) else value
