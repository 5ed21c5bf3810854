"""Regional compilation: a model's repeated blocks, compiled once each, never in front of a job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from worker.engine.levers.row import Ground, Undo

# A block keeps its compiled form under this name while the lever is off. The form knows its block, which a table
# would keep alive for ever.
_COMPILED = "_imgworker_compiled"


def has_repeated_blocks(ground: Ground) -> bool:
    """True if diffusers names the blocks of which every denoiser is made, and they are in it."""
    return bool(ground.denoisers) and all(any(_blocks(part)) for part in ground.denoisers)


def compiling(backend: str | Callable[..., Any] = "inductor") -> Callable[[Ground], Undo]:
    """Return `on` of the lever for a backend of torch.compile."""

    def on(ground: Ground) -> Undo:
        # With torch's default a model that is compiled does not look for hooks that are put on later: a LoRA in hooks
        # would be ignored without a word.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        blocks = [block for part in ground.denoisers for block in _blocks(part)]
        for block in blocks:
            kept = vars(block)
            if _COMPILED not in kept:
                block.compile(backend=backend, fullgraph=True)
                kept[_COMPILED] = block._compiled_call_impl
            block._compiled_call_impl = kept[_COMPILED]

        def off() -> None:
            for block in blocks:
                block._compiled_call_impl = None

        return off

    return on


@contextmanager
def without_compiling() -> Iterator[None]:
    """Let compiled code run where it fits, and plain code where something would have to be compiled first."""
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


@contextmanager
def stopping_between_blocks(ground: Ground, check: Callable[[], None]) -> Iterator[None]:
    """Have `check` called before each block, where it may raise: a block's compilation itself cannot be interrupted."""
    compiled = [
        (block, call)
        for part in ground.denoisers
        for block in _blocks(part)
        if (call := block._compiled_call_impl) is not None
    ]
    for block, call in compiled:
        block._compiled_call_impl = partial(_after, check, call)
    try:
        yield
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call


def _after(check: Callable[[], None], call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    check()
    return call(*arguments, **keywords)


def _blocks(part: nn.Module) -> Iterator[nn.Module]:
    names = getattr(part, "_repeated_blocks", None) or ()
    return (module for module in part.modules() if type(module).__name__ in names)
