"""The steps of a modular pipeline, seen from within its loops: their number, and the latents after each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks


@contextmanager
def watched_loops(pipe: Any, after_step: Callable[[int, Any], None]) -> Iterator[Callable[[], bool]]:
    """Let every turn of a denoising loop call `after_step` with its number and the latents; an error there ends it.

    Yields a function that is True while such a loop turns: what steps by then is seen already. Loops over parts of a
    video have their steps within, where only the scheduler sees them. `pipe.num_timesteps` is the number of turns.
    """
    loops = list(_loops(pipe._blocks))
    turning: list[bool] = []
    count = iter(range(1_000_000))

    def watched(turn: Callable[..., Any]) -> Callable[..., Any]:
        def watched_turn(components: Any, state: Any, **position: Any) -> Any:
            if "i" not in position:
                return turn(components, state, **position)
            pipe.num_timesteps = _turns(state)
            turning.append(True)
            try:
                result = turn(components, state, **position)
            finally:
                turning.pop()
            latents = getattr(result[1], "latents", None)
            after_step(next(count), latents if isinstance(latents, torch.Tensor) else None)
            return result

        return watched_turn

    for loop in loops:
        loop.loop_step = watched(loop.loop_step)
    try:
        yield lambda: bool(turning)
    finally:
        pipe.num_timesteps = None
        for loop in loops:
            del loop.loop_step


def _turns(state: Any) -> int | None:
    """Return the number of turns: one for each timestep, or from each sigma to the next."""
    timesteps, sigmas = getattr(state, "timesteps", None), getattr(state, "sigmas", None)
    if timesteps is not None:
        return len(timesteps)
    return len(sigmas) - 1 if sigmas is not None else None


def _loops(blocks: Any) -> Iterator[Any]:
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
    for block in (getattr(blocks, "sub_blocks", None) or {}).values():
        yield from _loops(block)
