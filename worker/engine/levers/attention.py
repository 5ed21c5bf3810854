"""Attention by other kernels: cuDNN's own, and those of the Hub that lie in the image and that the operator allows."""

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from diffusers.models import attention_dispatch
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.engine.levers.row import Ground, Undo

_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def cudnn_first(ground: Ground) -> Undo:
    """Let torch's own attention take cuDNN's kernel wherever that one can."""
    preferred = sdpa_kernel(_CUDNN_FIRST, set_priority=True)
    preferred.__enter__()
    return lambda: preferred.__exit__(None, None, None)


def takes_backends(ground: Ground) -> bool:
    """True if the denoiser's attention asks diffusers which kernel to use; the UNets' does not."""
    return any(_processors(ground))


def hub_kernel(backend: str, repository: str) -> tuple[Callable[[Ground], bool], Callable[[Ground], Undo]]:
    """Return `applies` and `on` of a kernel of the Hub, by diffusers' name of its backend.

    It is read from the operator's folder. diffusers would ask the Hub for it, and run what it gets.
    """
    name = attention_dispatch.AttentionBackendName(backend)

    def applies(ground: Ground) -> bool:
        return repository in ground.kernels and ground.device == "cuda" and takes_backends(ground)

    def on(ground: Ground) -> Undo:
        _load(name, ground.kernels[repository])
        processors = _processors(ground)
        before = [processor._attention_backend for processor in processors]
        for processor in processors:
            processor._attention_backend = name

        def off() -> None:
            for processor, backend in zip(processors, before, strict=True):
                processor._attention_backend = backend

        return off

    return applies, on


def _load(name: Any, folder: Path) -> None:
    """Give diffusers the functions of a kernel that lies in `folder`, where it would have fetched it itself."""
    config = attention_dispatch._HUB_KERNELS_REGISTRY[name]
    if config.kernel_fn is not None:
        return
    from kernels import get_local_kernel

    module = get_local_kernel(folder)
    for attribute, function in (
        ("kernel_fn", config.function_attr),
        ("wrapped_forward_fn", config.wrapped_forward_attr),
        ("wrapped_backward_fn", config.wrapped_backward_attr),
    ):
        if function is not None:
            setattr(config, attribute, attrgetter(function)(module))


def _processors(ground: Ground) -> list[Any]:
    processors = (getattr(module, "processor", None) for part in ground.denoisers for module in part.modules())
    return [processor for processor in processors if hasattr(processor, "_attention_backend")]
