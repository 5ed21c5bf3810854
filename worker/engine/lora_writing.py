"""A LoRA written to disk: one in another spelling, or the difference of two models; it is read again first."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.core.adapter import LoraFiles
from worker.core.device import LoadPlan
from worker.core.errors import LoadFailed, UnsupportedModel
from worker.core.lora_spellings import SPELLINGS, Spelling, SpellingName
from worker.engine.adapters.extraction import Extracted, extract
from worker.engine.adapters.pieces import Piece, Pieces, read_pieces
from worker.engine.adapters.respelling import metadata_of, spelled_tensors
from worker.engine.loader import load_pipeline
from worker.engine.new_places import bytes_at, put_in_place, refuse_taken

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Digests of the tensors under their names, and alphas, which the new file has anew.
_STALE = ("sshash_", "modelspec.hash", "lora_adapter_metadata")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_ROUNDING = 1e-6  # of a product in float32

# Reads the header of a file that was written: this room does not know the files of the service.
Examine = Callable[[Path], LoraFiles]


@dataclass(frozen=True, slots=True)
class WrittenLora:
    """A LoRA that was written and read again. `exact` is true if every number came back to the bit."""

    path: Path  # what was asked for: a file, or peft's folder
    file: Path
    layers: int
    tensors: int
    bytes: int
    exact: bool


def respell(plan: LoadPlan, lora: LoraFiles, target: Path, to: SpellingName, examine: Examine) -> WrittenLora:
    """Write `lora`, which was made for the model of `plan`, as `target` in another spelling. Blocking.

    Raises UnsupportedModel for what such a file has no place for, IncompatibleAdapter for a LoRA of another model,
    LoadFailed for what did not come back; then nothing is there.
    """
    check_target(target, to)
    pipe = load_pipeline(_whole(plan))
    return write_pieces(pipe, read_pieces(pipe, lora), target, SPELLINGS[to], examine, _further(lora, SPELLINGS[to]))


def extract_lora(
    plans: tuple[LoadPlan, LoadPlan], rank: int, stored: str, place: tuple[Path, SpellingName], examine: Examine
) -> tuple[WrittenLora, Extracted]:
    """Write the difference of a model and one tuned from it, `plans` in this order, as a LoRA at a place. Blocking.

    Raises UnsupportedModel for models of other shapes and for what such a file has no place for; then nothing is there.
    """
    target, to = place
    check_target(target, to)
    base, tuned = (load_pipeline(_whole(plan)) for plan in plans)
    extracted = extract(base, tuned, rank, _DTYPES[stored])
    del tuned
    return write_pieces(base, extracted.pieces, target, SPELLINGS[to], examine), extracted


def _whole(plan: LoadPlan) -> LoadPlan:
    return replace(plan, device="cpu", offload="none", precision="fp32", quantizer=None, reduced=None)


def check_target(target: Path, to: SpellingName) -> None:
    """Refuse a place that is taken or none, before anything is loaded."""
    refuse_taken(target)
    if to == "peft" and target.suffix == ".safetensors":
        raise UnsupportedModel(
            f"{target.name}: peft keeps a LoRA as a folder with its settings; name a folder.", field="output"
        )
    if to != "peft" and target.suffix != ".safetensors":
        raise UnsupportedModel(f"{target.name} must end with .safetensors, as a LoRA's file does.", field="output")


def write_pieces(
    pipe: Any, pieces: Pieces, target: Path, spelling: Spelling, examine: Examine, further: "Further | None" = None
) -> WrittenLora:
    """Write the pieces of a LoRA of `pipe`, read them again and compare every layer."""
    beside = further or Further({}, {})
    tensors, settings = spelled_tensors(pipe, pieces, spelling)
    tensors |= beside.tensors
    with put_in_place(target) as part:
        file = _save(part, tensors, settings, spelling, beside.metadata)
        exact = _compare(pieces, read_pieces(pipe, examine(file)))
        size = bytes_at(part)
    file = target / PEFT_FILE if spelling.name == "peft" else target
    return WrittenLora(target, file, len(pieces), len(tensors), size, exact)


@dataclass(frozen=True, slots=True)
class Further:
    """What a file has beside its layers: words of its own, and metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def _further(lora: LoraFiles, spelling: Spelling) -> Further:
    """Return what is carried over as it is. Raises UnsupportedModel for words in a spelling that has none."""
    keys = [key for parts in lora.keys.embeddings.values() for key in parts.values()]
    if keys and not spelling.original:
        raise UnsupportedModel(
            f"The file brings words of its own ({', '.join(lora.keys.embeddings)[:80]}), for which {spelling.name}'s "
            "spelling has no place; take --to kohya or comfy.",
            field="to",
        )
    with safe_open(lora.files.root, framework="pt") as file:
        metadata = {name: text for name, text in (file.metadata() or {}).items() if not name.startswith(_STALE)}
        return Further({key: file.get_tensor(key) for key in keys}, metadata)


def _save(
    part: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    spelling: Spelling,
    metadata: Mapping[str, str],
) -> Path:
    told = {"format": "pt", **metadata}
    owned = {name: tensor.clone() for name, tensor in tensors.items()}  # parts may share a tensor, and a file may not
    if spelling.name == "peft":
        part.mkdir()
        own = next(iter(settings.values()))
        config = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **own}
        (part / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        save_file(owned, part / PEFT_FILE, told)
        return part / PEFT_FILE
    if settings:
        told["lora_adapter_metadata"] = metadata_of(settings)
    save_file(owned, part, told)
    return part


def _compare(before: Pieces, after: Pieces) -> bool:
    """Return whether all came back to the bit. Raises LoadFailed for a layer that did not come back."""
    if after.keys() - before.keys():
        raise LoadFailed(f"{sorted(after.keys() - before.keys())[0]} was not in the file.", field="loras")
    exact = True
    for (component, path), piece in before.items():
        got = after.get((component, path))
        if got is not None and _is_same(piece, got):
            continue
        exact = False
        if not _is_close(piece, got):
            raise LoadFailed(f"{component}.{path} did not come back as it was.", field="loras")
    return exact


def _is_same(one: Piece, other: Piece) -> bool:
    return (
        one.tensors.keys() == other.tensors.keys()
        and one.alpha == other.alpha
        and all(_equal(tensor, other.tensors[role]) for role, tensor in one.tensors.items())
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.numel() == other.numel() and bool((one.flatten() == other.flatten()).all())


def _is_close(one: Piece, other: Piece | None) -> bool:
    """True if two LoRAs are the same product. One that is not there is none: what it said was nothing."""
    if not one.is_low_rank or (other is not None and not other.is_low_rank):
        return False
    mine = _product(one)
    theirs = torch.zeros_like(mine) if other is None else _product(other)
    return float((mine - theirs).abs().max()) <= _ROUNDING * float(mine.abs().max())


def _product(piece: Piece) -> Tensor:
    up, down = (piece.tensors[role].double().flatten(1) for role in ("up", "down"))
    return up @ down * ((piece.alpha or 0.0) / piece.rank)
