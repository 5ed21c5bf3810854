"""A LoRA file taken apart: what each layer of the model has of it, whatever the file's spelling.

Where the original code fuses layers (`qkv`) a file may have one change for all of them. It is taken apart by its rows;
one that was put together of several, each with a rank of its own, becomes those several again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from worker.core.adapter import LoraFiles
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.lora import ModuleKeys
from worker.engine.adapters.lora import read_tensors
from worker.engine.adapters.matching import Matcher, Order, match_lora, rank_of
from worker.engine.adapters.targets import Target

# Tensors that have a row for each of a layer's outputs, and those that all parts of a fused layer share.
ROW_ROLES = frozenset({"up", "up_bias", "diff", "diff_b", "dora_scale", "hada_w1_a", "hada_w2_a"})
SHARED_ROLES = frozenset({"down", "mid", "hada_w1_b", "hada_w2_b"})
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A file's change of one layer: its tensors by role, and its alpha; a plain LoRA always has one."""

    tensors: Mapping[str, Tensor]
    alpha: float | None

    @property
    def rank(self) -> int:
        """The rank that alpha is divided by; 0 where there is none."""
        return rank_of(self.tensors)

    @property
    def is_low_rank(self) -> bool:
        """True if it is up · down and nothing else."""
        return self.tensors.keys() == {"down", "up"}


Pieces = Mapping[tuple[str, str], Piece]  # by the component and the module's path in it


def read_pieces(pipe: Any, lora: LoraFiles) -> Pieces:
    """Return what each layer of `pipe` has of a file. Its words (`bundle_emb`) are left out.

    Raises IncompatibleAdapter where a tensor has no place in this model, UnsupportedModel for what cannot be taken
    apart.
    """
    keys = lora.keys
    if keys.refused:
        raise UnsupportedModel(f"{lora.model} holds {keys.refused}, which is not read here.", field="loras")
    tensors = read_tensors(lora)
    lost = match_lora(pipe, keys, tensors, lora.scaling).lost
    if lost:
        raise IncompatibleAdapter(
            f"{lora.model} has {len(lost)} layers that this model has not ({'; '.join(lost[:_SAMPLES])}); name the "
            "model that it was made for.",
            field="loras",
        )
    matcher = Matcher({n: p for n, p in pipe.components.items() if isinstance(p, nn.Module)}, tensors, lora.scaling)
    placed = [(module, *next(iter(matcher.targets(module).items()))) for module in keys.modules]
    pieces: dict[tuple[str, str], Piece] = {}
    for module, component, targets in sorted(placed, key=lambda each: len(each[2]) > 1):
        whole = _whole(matcher, module, (component, targets[0]), tensors)
        for target, piece in _parts(whole, targets, module):
            pieces.setdefault((component, target.path), piece)
    return pieces


def _whole(matcher: Matcher, module: ModuleKeys, place: tuple[str, Target], tensors: Mapping[str, Tensor]) -> Piece:
    held = {role: tensors[key] for role, key in module.keys.items()}
    alpha = held.pop("alpha", None)
    piece = Piece(held, None if alpha is None else float(alpha))
    if "down" not in held or (piece.alpha or 0.0) != 0.0:
        return piece
    # The scale stands beside the file, or nowhere; a trainer's 0 means "as the rank".
    return replace(piece, alpha=matcher.factor(*place, module.name, held) * piece.rank)


def _parts(whole: Piece, targets: Sequence[Target], module: ModuleKeys) -> Iterator[tuple[Target, Piece]]:
    """Yield what each target has of a module's change."""
    if len(targets) == 1 and not targets[0].swapped:
        yield targets[0], whole
        return
    total = sum(target.rows for target in targets)
    magnitude = whole.tensors.get("dora_scale")
    by_columns = magnitude is not None and not magnitude.shape[0] == magnitude.numel() == total
    if by_columns or not whole.tensors.keys() <= ROW_ROLES | SHARED_ROLES:
        raise UnsupportedModel(
            f"{module.name} has a {module.algorithm} over {len(targets)} layers, which cannot be taken apart exactly; "
            "keep the file's own spelling.",
            field="to",
        )
    starts = [sum(target.rows for target in targets[:index]) for index in range(len(targets))]
    orders = [Order(total, start, target) for start, target in zip(starts, targets, strict=True)]
    pieces = [
        replace(whole, tensors={r: order.of(t) if r in ROW_ROLES else t for r, t in whole.tensors.items()})
        for order in orders
    ]
    for target, piece in zip(targets, _unstacked(pieces), strict=True):
        if piece is not None:
            yield target, piece


def _unstacked(pieces: Sequence[Piece]) -> Sequence[Piece | None]:
    """Return each part with the ranks that are its own alone, where no two parts share one; None for one without."""
    if len(pieces) < 2 or not pieces[0].is_low_rank:
        return pieces
    used = [piece.tensors["up"].flatten(1).ne(0).any(dim=0) for piece in pieces]
    shared = torch.stack(used).sum(dim=0)
    if int(shared.max()) != 1:
        return pieces
    return [_of_ranks(piece, own) if bool(own.any()) else None for piece, own in zip(pieces, used, strict=True)]


def _of_ranks(piece: Piece, own: Tensor) -> Piece:
    down, up, alpha = piece.tensors["down"], piece.tensors["up"], piece.alpha
    rank = int(own.sum())
    scaled = None if alpha is None else alpha * rank / piece.rank
    return Piece({"down": down[own], "up": up[:, own]}, scaled)


def joined(name: str, parts: Sequence[Piece | None], rows: Sequence[int], spelling: str) -> Piece:
    """Return one change for a layer of the original that is several here; a part that is None stays as it is.

    Raises UnsupportedModel where that cannot be said in one.
    """
    there = [part for part in parts if part is not None]
    first = there[0]
    if len(there) == len(parts) and all(_go_together(first, part) for part in there):
        stacked = {
            role: torch.cat([part.tensors[role] for part in there]) if role in ROW_ROLES else tensor
            for role, tensor in first.tensors.items()
        }
        return Piece(stacked, first.alpha)
    if not all(part.is_low_rank for part in there):
        raise UnsupportedModel(
            f"{name} is one layer in {spelling}'s spelling, and the file has changes of its parts that are not LoRAs "
            "alike; take --to diffusers.",
            field="to",
        )
    return _stacked(parts, rows)


def _go_together(one: Piece, other: Piece) -> bool:
    """True if two parts differ in their rows alone."""
    return (
        one.tensors.keys() == other.tensors.keys() <= ROW_ROLES | SHARED_ROLES
        and one.alpha == other.alpha
        and all(torch.equal(t, other.tensors[role]) for role, t in one.tensors.items() if role in SHARED_ROLES)
    )


def _stacked(parts: Sequence[Piece | None], rows: Sequence[int]) -> Piece:
    """Return LoRAs as one, each with ranks of its own: down above down, up beside up."""
    there = [part for part in parts if part is not None]
    total = sum(part.rank for part in there)
    scales = [(part.alpha or 0.0) / part.rank for part in there]
    kept = len({*scales}) == 1
    dtype = there[0].tensors["up"].dtype if kept else torch.float32
    up = torch.zeros(sum(rows), total, dtype=dtype)
    row = rank = 0
    for part, height in zip(parts, rows, strict=True):
        if part is not None:
            factor = 1.0 if kept else (part.alpha or 0.0) / part.rank / scales[0]
            up[row : row + height, rank : rank + part.rank] = part.tensors["up"].to(dtype) * factor
            rank += part.rank
        row += height
    down = torch.cat([part.tensors["down"] for part in there])
    return Piece({"down": down, "up": up}, (there[0].alpha or 0.0) * total / there[0].rank)
