"""A LoRA's pieces put into the keys of a spelling: the way out of `matching.py`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from worker.core.errors import UnsupportedModel
from worker.core.lora_spellings import Spelling, encoder_prefix
from worker.core.single_file import encoder_kind
from worker.engine.adapters.names import original_names
from worker.engine.adapters.original_names import TABLES, Alias
from worker.engine.adapters.pieces import ROW_ROLES, Piece, Pieces, joined
from worker.engine.adapters.targets import Targets

_UNET = "UNet2DConditionModel"
_ENCODER = "text_encoder"


@dataclass(frozen=True, slots=True)
class _Spelled:
    """A module as a file has it: what stands before its name, its name, and its change."""

    component: str
    prefix: str
    name: str
    piece: Piece


def spelled_tensors(pipe: Any, pieces: Pieces, spelling: Spelling) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and the settings that hold its alphas where its keys do not: peft's, by component.

    Raises UnsupportedModel, by name, for what such a file has no place for.
    """
    _check_components(pieces, spelling)
    tensors: dict[str, Tensor] = {}
    modules = [module for component in _components(pieces) for module in _modules(pipe, component, pieces, spelling)]
    for module in modules:
        for role, tensor in module.piece.tensors.items():
            if not spelling.holds(role):
                raise _no_place(module, role, spelling)
            tensors[spelling.key(module.prefix, module.name, role)] = _shaped(module, role, tensor, spelling)
        if spelling.original and module.piece.alpha is not None:
            tensors[spelling.key(module.prefix, module.name, "alpha")] = torch.tensor(module.piece.alpha)
    return tensors, {} if spelling.original else _settings(modules)


def _components(pieces: Pieces) -> list[str]:
    return sorted({component for component, _ in pieces})


def _check_components(pieces: Pieces, spelling: Spelling) -> None:
    encoders = [name for name in _components(pieces) if name.startswith(_ENCODER)]
    if spelling.name == "peft" and encoders:
        raise UnsupportedModel(
            f"The file changes {encoders[0]} too, and peft keeps one model a file; take --to diffusers.", field="to"
        )


def _modules(pipe: Any, component: str, pieces: Pieces, spelling: Spelling) -> Iterator[_Spelled]:
    """Yield the changes of one component by the names that a file has for its modules."""
    part: nn.Module = pipe.components[component]
    own = {path: piece for (name, path), piece in pieces.items() if name == component}
    if component.startswith(_ENCODER):
        prefix = _encoder_prefix(pipe, component, part, spelling)
        named = {_encoder_path(part, path): piece for path, piece in own.items()}
    else:
        prefix = spelling.denoiser.format(component)
        named = _by_original(part, own, spelling) if _is_original(part, spelling) else own
    for name, piece in named.items():
        yield _Spelled(component, prefix, name, piece)


def _is_original(part: nn.Module, spelling: Spelling) -> bool:
    """True if modules have the names of the model's own code: kohya calls the first UNets' as diffusers does."""
    if not spelling.original:
        return False
    of_unet = type(part).__name__ == _UNET
    return not (of_unet and spelling.name == "kohya" and getattr(part, "add_embedding", None) is None)


def _by_original(part: nn.Module, own: Mapping[str, Piece], spelling: Spelling) -> dict[str, Piece]:
    """Return the changes of a denoiser's modules by the original's layers, one for all that it has in one."""
    shapes = Targets(part).paths
    named: dict[str, Piece] = {}
    for name, parts in _layers(part, shapes, spelling).items():
        there = [None if path not in own else _turned(own[path], alias) for path, alias in parts]
        if len(parts) > 1 and any(piece is not None for piece in there):
            rows = [shapes[path][0] if shapes[path] else 1 for path, _ in parts]
            named[name] = joined(name, there, rows, spelling.name)
        elif there[0] is not None:
            named[name] = there[0]
    return named


def _layers(part: nn.Module, paths: Iterable[str], spelling: Spelling) -> dict[str, list[tuple[str, Alias]]]:
    """Return the modules of each of the original's layers, in the order of their rows."""
    kind = type(part).__name__
    if kind != _UNET and kind not in TABLES:
        raise UnsupportedModel(
            f"The names that other programs have for the layers of a {kind} are not known here; take --to diffusers "
            "or peft.",
            field="to",
        )
    found: dict[str, list[tuple[str, Alias]]] = {}
    for path, alias in original_names(paths, None if kind == _UNET else TABLES[kind]).items():
        found.setdefault(alias.name, []).append((path, alias))
    layers = {name: sorted(parts, key=lambda each: each[1].part) for name, parts in found.items()}
    if spelling.fuses:
        return layers
    return {
        f"{name}.{alias.part}" if len(parts) > 1 else name: [(path, alias)]
        for name, parts in layers.items()
        for path, alias in parts
    }


def _turned(piece: Piece, alias: Alias) -> Piece:
    """Return a change with the halves of its rows the other way round, where the original has them so."""
    if not alias.swapped:
        return piece
    return replace(piece, tensors={r: _swapped(t) if r in ROW_ROLES else t for r, t in piece.tensors.items()})


def _swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def _encoder_prefix(pipe: Any, component: str, part: nn.Module, spelling: Spelling) -> str:
    encoders = [n for n, p in pipe.components.items() if n.startswith(_ENCODER) and isinstance(p, nn.Module)]
    prefix = encoder_prefix(spelling, component, encoder_kind(type(part).__name__), alone=len(encoders) == 1)
    if prefix is None:
        raise UnsupportedModel(
            f"The file changes {component}, a {type(part).__name__}, which has no name in {spelling.name}'s spelling; "
            "take --to diffusers.",
            field="to",
        )
    return prefix


def _encoder_path(part: nn.Module, path: str) -> str:
    """Return a text encoder's path as files have it, whatever this version of transformers calls it."""
    is_clip = encoder_kind(type(part).__name__) == "clip"
    return f"text_model.{path.removeprefix('text_model.')}" if is_clip else path


def _shaped(module: _Spelled, role: str, tensor: Tensor, spelling: Spelling) -> Tensor:
    """Return a tensor in the shape that it has in such a file: DoRA's magnitude is a column or a vector."""
    if role != "dora_scale":
        return tensor.contiguous()
    if spelling.original:
        ones = (1,) * max(1, module.piece.tensors["down"].ndim - 1) if "down" in module.piece.tensors else (1,)
        return tensor.reshape(-1, *ones).contiguous() if tensor.ndim == 1 else tensor.contiguous()
    if tensor.shape[0] != tensor.numel() or module.piece.tensors["down"].ndim > 2:
        raise _no_place(module, "a magnitude by columns or of a convolution", spelling)
    return tensor.flatten().contiguous()


def _no_place(module: _Spelled, what: str, spelling: Spelling) -> UnsupportedModel:
    other = "kohya or comfy" if not spelling.original else "diffusers or peft"
    return UnsupportedModel(
        f"{module.name} of the {module.component} has {what}, for which {spelling.name}'s spelling has no place; "
        f"take --to {other}.",
        field="to",
    )


def _settings(modules: list[_Spelled]) -> dict[str, Any]:
    """Return peft's settings for each component: the most frequent rank and alpha, and patterns for the others."""
    settings: dict[str, Any] = {}
    for component in dict.fromkeys(module.component for module in modules):
        own = {module.name: module.piece for module in modules if module.component == component}
        ranks = {name: piece.rank for name, piece in own.items()}
        alphas = {name: _plain(piece.alpha or 0.0) for name, piece in own.items()}
        (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
        settings[component] = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": _patterns(ranks, rank),
            "alpha_pattern": _patterns(alphas, alpha),
            "target_modules": sorted(own),
            "use_dora": any("dora_scale" in piece.tensors for piece in own.values()),
            "lora_bias": any("up_bias" in piece.tensors for piece in own.values()),
        }
    return settings


def _patterns(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return the values that differ, by patterns that fit one module: a name alone also fits what ends with it."""
    short = {name for name in values if any(other.endswith(f".{name}") for other in values)}
    return {f"^{name}" if name in short else name: value for name, value in values.items() if value != usual}


def _plain(number: float) -> float:
    """Return a whole number as an int: peft's own files have those."""
    return int(number) if number == int(number) else number


def metadata_of(settings: Mapping[str, Any]) -> str:
    """Return the settings as diffusers keeps them in a file's metadata."""
    flat = {f"{part}.{name}": value for part, values in settings.items() for name, value in values.items()}
    return json.dumps(flat, indent=2, sort_keys=True)
