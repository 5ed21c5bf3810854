"""A LoRA out of the difference of two models: of each layer the largest singular values, as many as its rank.

The share that is kept is that of the squared numbers of the difference, by what the LoRA says once it is rounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.core.errors import UnsupportedModel
from worker.engine.adapters.matching import DENOISERS
from worker.engine.adapters.pieces import Piece, Pieces
from worker.engine.adapters.targets import Targets

# A matrix with a side up to this long is taken apart exactly; of a larger one the first values are sought.
_EXACT = 512
_BESIDE, _ROUNDS = 16, 6  # values sought beside those that are kept, and how often


@dataclass(frozen=True, slots=True)
class Extracted:
    """A LoRA's pieces, and how much of the difference they hold."""

    pieces: Pieces
    kept: float  # share of the squared difference that the LoRA says
    left_out: float  # share that is in biases, norms and tables, for which a LoRA has no place


def extract(base: Any, tuned: Any, rank: int, dtype: torch.dtype) -> Extracted:
    """Return the difference of two pipelines of one shape as a LoRA for `base`, of at most this rank a layer.

    Raises UnsupportedModel for pipelines whose shapes differ, and for two that are the same.
    """
    pieces: dict[tuple[str, str], Piece] = {}
    total = said = beside = 0.0
    for component in _components(base, tuned):
        layers = _layers(getattr(base, component))
        for name, difference in _differences(component, getattr(base, component), getattr(tuned, component)):
            square = float(difference.double().square().sum())
            total += square
            path = name.removesuffix(".weight")
            if path not in layers or not name.endswith(".weight"):
                beside += square
                continue
            piece = _low_rank(difference, rank, dtype)
            pieces[component, path] = piece
            said += square - float((difference.flatten(1).double() - _product(piece)).square().sum())
    if not pieces:
        raise UnsupportedModel("No layer of the two models differs, so that there is no LoRA to take.", field="model")
    return Extracted(pieces, said / total, beside / total)


def _components(base: Any, tuned: Any) -> list[str]:
    """Return the components that a LoRA can change. Raises UnsupportedModel where the two models have others."""
    own, theirs = dict(_parts(base)), dict(_parts(tuned))
    for name in sorted(own.keys() | theirs.keys(), key=lambda name: (name not in DENOISERS, name)):
        kinds = [type(parts[name]).__name__ if name in parts else "missing" for parts in (own, theirs)]
        if kinds[0] != kinds[1]:
            raise UnsupportedModel(
                f"The {name} of --model is {kinds[0]} and that of the tuned one {kinds[1]}; name the model that it was "
                "trained from.",
                field="model",
            )
    return sorted(own)


def _parts(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and (name in DENOISERS or name.startswith("text_encoder")):
            yield name, part


def _differences(component: str, base: nn.Module, tuned: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the difference of each tensor that differs. Raises UnsupportedModel for tensors of other shapes."""
    theirs, own = tuned.state_dict(), base.state_dict()
    for name in [*own, *(name for name in theirs if name not in own)]:
        shapes = [tuple(state[name].shape) if name in state else "absent" for state in (own, theirs)]
        if shapes[0] != shapes[1]:
            raise UnsupportedModel(
                f"{component}.{name} is {shapes[0]} in --model and {shapes[1]} in the tuned one; name the model that "
                "it was trained from.",
                field="model",
            )
    for name, tensor in own.items():
        if tensor.is_floating_point():
            difference = theirs[name].float() - tensor.float()
            if difference.numel() and float(difference.abs().max()) > 0:
                yield name, difference


def _layers(part: nn.Module) -> set[str]:
    """Return the paths of layers that a LoRA can change: plain matrices and kernels."""
    kinds = (nn.Linear, nn.Conv2d)
    modules = dict(part.named_modules())
    return {path for path in Targets(part).paths if isinstance(modules.get(path), kinds)}


def _low_rank(difference: Tensor, rank: int, dtype: torch.dtype) -> Piece:
    """Return the nearest LoRA of this rank; its halves are of one size."""
    matrix = difference.flatten(1)
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= _EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):  # the search begins at random numbers, which are to be the same ones
            torch.manual_seed(0)
            left, values, columns = torch.svd_lowrank(matrix, min(rank + _BESIDE, *matrix.shape), niter=_ROUNDS)
        right = columns.T
    root = values[:rank].sqrt()
    up = (left[:, :rank] * root).to(dtype)
    down = (root[:, None] * right[:rank]).to(dtype)
    kernel = difference.shape[2:]
    tensors = {"down": down.reshape(rank, *difference.shape[1:]), "up": up.reshape(*up.shape, *(1 for _ in kernel))}
    return Piece({role: tensor.contiguous() for role, tensor in tensors.items()}, float(rank))


def _product(piece: Piece) -> Tensor:
    return piece.tensors["up"].double().flatten(1) @ piece.tensors["down"].double().flatten(1)
