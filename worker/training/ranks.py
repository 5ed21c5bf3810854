"""Processes that take the steps of one training together: each computes its own images of a batch.

Gradients are summed after every step, over gloo and in the host's memory: those of an adapter are small, and it is the
same on every kind of device. All processes then take the same step, so that their weights stay equal to the bit, and
none of them but the first writes anything. What is learnt does not depend on their number, but for rounding.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import nn

from worker.core.errors import EngineFailure
from worker.engine.other_processes import HERE, OtherProcesses, Work

# How long the others may take to load their pipelines, and to take a step.
_START_S, _STEP_S = 1_800.0, 600.0
STEP = b"step"


class Ranks(Protocol):
    """The processes of a training, as one of them sees them."""

    def mine(self, first: int, count: int) -> list[int]:
        """Return which of `count` images are computed here, where `first` images of the step are before them."""
        ...

    def begin(self) -> None:
        """Have the others take the step that begins here."""
        ...

    def alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let all processes have the first one's parameters. It waits until they are there."""
        ...

    def summed(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Let all have the sum of their gradients, and return that of their losses."""
        ...

    def close(self) -> None:
        """End the others."""
        ...


class Alone:
    """One process."""

    def mine(self, first: int, count: int) -> list[int]:
        """Return all of them."""
        return [*range(count)]

    def begin(self) -> None:
        """Do nothing."""

    def alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Do nothing."""

    def summed(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Return the loss."""
        return loss

    def close(self) -> None:
        """Do nothing."""


ALONE = Alone()


class Member:
    """One of several processes. `group` is made by all of them at once."""

    def __init__(self, number: int, count: int, store: Any) -> None:
        self.number, self.count, self._store = number, count, store
        self._group: Any = None

    def mine(self, first: int, count: int) -> list[int]:
        """Return every `count`th image of the step."""
        return [index for index in range(count) if (first + index) % self.count == self.number]

    def begin(self) -> None:
        """Do nothing: who is not the first was told to."""

    def alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Meet the others, and take the first one's parameters."""
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=HERE)]
        options._timeout = timedelta(seconds=_START_S)
        self._group = distributed.ProcessGroupGloo(self._store, self.number, self.count, options)
        flat = _flat([parameter.data for parameter in parameters])
        flat *= self.number == 0  # the sum is the first one's then
        self._sum(flat)
        _fill([parameter.data for parameter in parameters], flat)

    def summed(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Sum what each has, and put it in the place of each one's own."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = _flat([*gradients, torch.tensor([loss])])
        self._sum(flat)
        _fill(gradients, flat[:-1])
        return float(flat[-1])

    def close(self) -> None:
        """Leave the others."""
        self._group = None

    def _sum(self, flat: torch.Tensor) -> None:
        self._group.allreduce([flat]).wait(timedelta(seconds=_STEP_S))


class Leader(Member):
    """The first process, which starts the others and ends them."""

    def __init__(self, count: int, work: Work) -> None:
        store = distributed.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
        super().__init__(0, count, store)
        self._others = OtherProcesses(count, store.port, work)

    def begin(self) -> None:
        """Tell the others to take a step. Raises EngineFailure where one of them has ended."""
        self._guarded(lambda: self._others.order(STEP))

    def alike(self, parameters: Sequence[nn.Parameter]) -> None:
        """Wait for the others, and give them the parameters. Raises EngineFailure where one of them has ended."""
        self._guarded(lambda: self._others.wait(_START_S))
        self._guarded(lambda: super(Leader, self).alike(parameters))

    def close(self) -> None:
        """End the others at once: they hold nothing that is not here."""
        super().close()
        self._others.close()

    def _sum(self, flat: torch.Tensor) -> None:
        self._guarded(lambda: super(Leader, self)._sum(flat))

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except (RuntimeError, OSError, EOFError):
            ended = self._others.ended()
            self.close()
            raise EngineFailure(
                f"{ended} of the {self.count} processes of this training ended, or took too long: the last checkpoint "
                "stays, and the same request goes on from it. With fewer TRAINING_PROCESSES each needs as much memory."
            ) from None


def joined_by(number: int, count: int, port: int) -> Member:
    """Return a process that is not the first, which listens at `port`."""
    return Member(number, count, distributed.TCPStore(HERE, port, is_master=False, timeout=timedelta(seconds=60)))


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in tensors])


def _fill(tensors: Sequence[torch.Tensor], flat: torch.Tensor) -> None:
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()
