"""Muon with AdamW: orthogonalised momentum for weight matrices, Adam for embeddings, norms, biases and the rim.

Follows Keller Jordan's Muon (2024), the update scaled so that its root mean square matches Adam's (Moonshot, 2025).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RIM = ("embedding", "conv_in", "conv_out", "quant_conv")


def orthogonalised(stack: Tensor) -> Tensor:
    """Push the singular values of a stack of matrices (count, rows, columns) towards one by Newton-Schulz steps."""
    tall = stack.shape[-2] > stack.shape[-1]
    matrices = stack.mT if tall else stack
    matrices = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-9)).bfloat16().contiguous()
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_STEPS):
        gram = matrices @ matrices.mT
        matrices = a * matrices + (b * gram + c * (gram @ gram)) @ matrices
    return (matrices.mT if tall else matrices).float()


class MuonAdam:
    """One optimizer over all parameters; matrices and kernels go to Muon, the rest to AdamW."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], weight_decay: float = 1e-3) -> None:
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.matrices = [p for name, p in named if p.ndim >= 2 and not any(word in name for word in _RIM)]
        chosen = {id(p) for p in self.matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
        self.weight_decay = weight_decay
        self.momenta = [torch.zeros(p.shape[0], p.numel() // p.shape[0], device=p.device) for p in self.matrices]
        self._shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, momentum in enumerate(self.momenta):
            self._shapes[(momentum.shape[0], momentum.shape[1])].append(place)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.matrices:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float, beta: float = 0.95) -> None:
        """Take one step with learning rate ``rate`` (in Adam's units, for both halves)."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for (rows, columns), places in self._shapes.items():
            directions = []
            for place in places:
                gradient = self.matrices[place].grad
                if gradient is None:
                    raise RuntimeError("a matrix has no gradient")
                flat = gradient.reshape(rows, columns)
                self.momenta[place].lerp_(flat, 1 - beta)
                directions.append(flat.lerp(self.momenta[place], beta))
            updates = orthogonalised(torch.stack(directions))
            scale = -rate * 0.2 * math.sqrt(max(rows, columns))
            for place, update in zip(places, updates, strict=True):
                parameter = self.matrices[place]
                parameter.mul_(1 - rate * self.weight_decay)
                parameter.add_(update.reshape(parameter.shape), alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs."""
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.adam.load_state_dict(state["adam"])
        for mine, saved in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(saved)
