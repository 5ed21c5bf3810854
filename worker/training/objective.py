"""What is to be predicted: noise, velocity or flow, at times drawn at random, and how far off a prediction is.

Diffusion: x = sqrt(a) x0 + sqrt(1 - a) e (Ho et al., 2020; v of Salimans & Ho, 2022); min-SNR weights of Hang et al.,
2023. Flow: x = (1 - s) x0 + s e, to predict e - x0 (Lipman et al., 2023), with times as in Stable Diffusion 3 (Esser et
al., 2024): the sigmoid of normal numbers.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

TIMESTEPS = 1_000
_LEAST = 1e-3  # of all weights together: a mask may be cut away with the edge of its image


@dataclass(frozen=True, slots=True)
class Objective:
    """The kind of prediction of one model; `alphas` are the scheduler's cumulated products, of diffusion models."""

    kind: Literal["flow", "epsilon", "v_prediction", "sample"]
    alphas: Tensor | None = None
    min_snr: float | None = None

    @classmethod
    def of(cls, scheduler: Any, min_snr: float | None) -> "Objective":
        """Return what models with this scheduler predict."""
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            return cls("flow")
        return cls(scheduler.config.get("prediction_type", "epsilon"), alphas.double().cpu(), min_snr)

    def times(self, count: int, random: torch.Generator) -> Tensor:
        """Return timesteps (count,) between 0 and 1000, spread over the batch so that none is of one time only."""
        places = (torch.rand(1, generator=random) + torch.arange(count) / count) % 1
        if self.kind == "flow":
            normal = torch.special.ndtri(places.double().clamp(1e-6, 1 - 1e-6))
            return (torch.sigmoid(normal) * TIMESTEPS).float()
        return (places * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return `clean` (n, …) with noise, each at its timestep."""
        signal, share = self._shares(times, clean)
        return signal * clean + share * noise

    def loss(
        self, predicted: Tensor, clean: Tensor, noise: Tensor, times: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean of squares (n,) of what each prediction is off by, weighted.

        `weight` (n, …) says how much each latent counts in the mean of its image.
        """
        squares = (predicted.float() - self._target(clean, noise, times)).square().flatten(1)
        if weight is None:
            off = squares.mean(1)
        else:
            shares = weight.to(squares).flatten(1)
            off = (squares * shares).sum(1) / shares.sum(1).clamp(min=_LEAST)
        return off * self._weight(times).to(off)

    def _shares(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.alphas is None:
            noise = times.double() / TIMESTEPS
            signal = 1 - noise
        else:
            alphas = self.alphas[times]
            signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
        shape = (-1, *[1] * (like.ndim - 1))
        return signal.to(like).reshape(shape), noise.to(like).reshape(shape)

    def _target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        match self.kind:
            case "flow":
                return noise - clean
            case "epsilon":
                return noise
            case "sample":
                return clean
            case _:
                signal, share = self._shares(times, clean)
                return signal * noise - share * clean

    def _weight(self, times: Tensor) -> Tensor:
        if self.min_snr is None or self.alphas is None:
            return torch.ones(len(times))
        snr = self.alphas[times] / (1 - self.alphas[times])
        least = snr.clamp(max=self.min_snr)
        return least / (snr + 1 if self.kind == "v_prediction" else snr)
