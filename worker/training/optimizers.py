"""Optimizers, and a running mean of what is learnt, kept among their state.

Prodigy is prodigyopt's (Mishchenko & Defazio, 2023) and AdamW in 8 bits bitsandbytes' (Dettmers et al., 2021).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from worker.core.training import OptimizerName
from worker.engine.packages import bitsandbytes_package

_BETAS = (0.9, 0.999)
_LION_BETAS = (0.9, 0.99)
_MEAN = "mean"
_B = ".lora_B."
Named = list[tuple[str, nn.Parameter]]  # parameters with their names
RATIO = "ratio"  # of a group's learning rate to that of the training


class Lion(torch.optim.Optimizer):  # type: ignore[misc]
    """Lion (Chen et al., 2023, algorithm 2): the sign of a momentum, so that every step is of one size.

    It wants a learning rate of a third to a tenth of AdamW's.
    """

    def __init__(self, parameters: Sequence[Any], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": _LION_BETAS})

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step; `closure` is not used."""
        for group in self.param_groups:
            rate, (first, second) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                own, gradient = parameter.data, parameter.grad
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(own))
                direction = momentum.lerp(gradient, 1 - first).sign_()
                own.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                momentum.lerp_(gradient, 1 - second)


def in_groups(learning: Named, ratio: float | None) -> list[Named]:
    """Return what learns at one rate: all of it, or the B of adapters, at `ratio` times the rate, behind the rest."""
    if ratio is None:
        return [learning]
    rest = [each for each in learning if _B not in each[0]]
    return [rest, [each for each in learning if _B in each[0]]]


def optimizer_of(
    name: OptimizerName, groups: Sequence[Named], rate: float, decay: float, ratio: float | None = None
) -> Any:
    """Return a fresh optimizer, whose package is there (packages.py). The second group has `ratio` times the rate."""
    parameters = [
        {"params": [parameter for _, parameter in group], **({RATIO: ratio} if index else {})}
        for index, group in enumerate(groups)
    ]
    match name:
        case "lion":
            return Lion(parameters, rate, decay)
        case "prodigy":
            return _prodigy(parameters, rate, decay)
        case "adamw8bit":
            return bitsandbytes_package().optim.AdamW8bit(parameters, lr=rate, betas=_BETAS, weight_decay=decay)
        case _:
            return torch.optim.AdamW(parameters, lr=rate, betas=_BETAS, weight_decay=decay)


def _prodigy(parameters: Sequence[Any], rate: float, decay: float) -> Any:
    """Return Prodigy with what its authors advise for a warm-up and diffusion models."""
    from prodigyopt import Prodigy

    made = Prodigy(parameters, lr=rate, betas=_BETAS, use_bias_correction=True, safeguard_warmup=True)
    for group in made.param_groups:  # told at its making it would print a line
        group["weight_decay"] = decay
    return made


def follow(optimizer: torch.optim.Optimizer, decay: float, step: int) -> None:
    """Move the mean of each parameter towards it; early on by more, so that it forgets the beginning."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if _MEAN in state:
                state[_MEAN].lerp_(parameter.detach(), share)
            else:
                state[_MEAN] = parameter.detach().clone()


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have the parameters be their means while the block inside runs, where means are kept."""
    kept = [
        (parameter, parameter.data, optimizer.state[parameter][_MEAN])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if _MEAN in optimizer.state[parameter]
    ]
    for parameter, _, mean in kept:
        parameter.data = mean
    try:
        yield
    finally:
        for parameter, own, _ in kept:
            parameter.data = own
