"""A crew of training processes, one thread each, that average their weights now and then (local SGD).

On a CPU two single-threaded processes learn faster than one process with two threads. The crew meets by the clock, not
by the step, and weighs each member by the steps it took: a member that was slowed down or stopped holds nobody up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


class Crew:
    """One member's view of the crew."""

    def __init__(self, rank: int, size: int, parameters: Sequence[Tensor], seconds: float = 2.0) -> None:
        self.rank = rank
        self.size = size
        self._parameters = list(parameters)
        self._seconds = seconds
        self._steps = 0
        self._next = time.monotonic() + seconds

    def stepped(self) -> bool:
        """Count a step; average with the others when it is time. Returns True if the weights were averaged."""
        self._steps += 1
        if time.monotonic() < self._next:
            return False
        if self.size > 1:
            self._average()
        self._steps = 0
        self._next = time.monotonic() + self._seconds
        return True

    @torch.no_grad()
    def _average(self) -> None:
        flat = torch.cat([p.detach().reshape(-1) for p in self._parameters] + [torch.ones(1)])
        flat *= self._steps
        dist.all_reduce(flat)
        flat /= flat[-1].clone()
        start = 0
        for parameter in self._parameters:
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def agreed(self, value: float) -> float:
        """Return the first member's ``value`` to all."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


def _member(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    work(rank, size, *arguments)
    if size > 1:
        dist.destroy_process_group()


def muster(
    size: int, work: Callable[..., None], *arguments: Any, port: int = 29641, pid_file: Path | None = None
) -> None:
    """Run ``work(rank, size, *arguments)`` in ``size`` processes and wait; their ids go to ``pid_file``, one a line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = mp.start_processes(
        _member, args=(size, port, work, arguments), nprocs=size, join=False, start_method="spawn"
    )
    if context is None:
        raise RuntimeError("the crew did not start")
    if pid_file:
        with pid_file.open("a") as lines:
            lines.writelines(f"{pid}\n" for pid in context.pids())
    while not context.join():
        pass
