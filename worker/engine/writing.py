"""A model written to disk in another form or precision, and held against what it was before it has its name.

A single file has the names in which the family's checkpoints are published, where `published_names.py` has them; else
diffusers' own, behind the prefixes by which the loader knows the parts. It holds no configs and no tokenizers: whoever
loads it has those of the family, or of the repository that it was made of.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from worker.core.adapter import LoraFiles
from worker.core.device import LoadPlan
from worker.core.errors import LoadFailed, UnsupportedModel
from worker.core.lora import DENOISER
from worker.core.model import DENOISERS
from worker.core.precision import DType
from worker.core.single_file import text_encoders
from worker.engine import gguf_writing
from worker.engine.adapters.baking import baked
from worker.engine.components import read_index
from worker.engine.loader import load_pipeline
from worker.engine.new_places import bytes_at, put_in_place, refuse_taken
from worker.engine.published_names import original

Form = Literal["diffusers", "single-file", "gguf"]
Stored = Literal["fp32", "fp16", "bf16", "fp8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
# The dtype in which a stored precision is loaded again; fp8 is plain bfloat16 again then.
# GGUF is compared in float32.
_LOADED: Mapping[Stored, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}
_TORCH: Mapping[Stored, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DENOISER = "model.diffusion_model."
_FP8 = torch.float8_e4m3fn
_FP8_LARGEST = 448.0
# Half a step of three bits of mantissa, and of bfloat16's seven; below the normal numbers half of the smallest step.
_FP8_ROUNDING, _FP8_LEAST = 2**-4 + 2**-8, 2**-10


@dataclass(frozen=True, slots=True)
class Written:
    """A model that was written and loaded again. `rounding` is the most that a weight moved, of its own size."""

    path: Path
    tensors: int
    bytes: int
    rounding: float


def write_model(plan: LoadPlan, target: Path, form: Form, stored: Stored, loras: Sequence[LoraFiles] = ()) -> Written:
    """Write the model of `plan` as `target`, load it again and compare every tensor. Blocking.

    `loras` are merged into it. Raises UnsupportedModel for what cannot be written
    so, IncompatibleAdapter, LoadFailed for what did not come back; then nothing is there.
    """
    _check(plan, target, form, stored)
    if form == "gguf" and any(module.component != DENOISER for lora in loras for module in lora.keys.modules):
        raise UnsupportedModel(
            "A LoRA changes a text encoder too, for which a GGUF file has no place; give it to each job as loras.",
            field="loras",
        )
    plain = replace(plan, dtype="float32", device="cpu", offload="none", precision="fp32", quantizer=None)
    source = load_pipeline(plain)
    with baked(source, loras):
        _check_range(source, stored)
        before = {name: part.state_dict() for name, part in _parts(source)}
        with put_in_place(target) as part:
            if form == "gguf":
                tensors = {n.removeprefix(_DENOISER): t for n, t in _named(source) if n.startswith(_DENOISER)}
                gguf_writing.write_gguf(tensors, _denoiser(source), part, stored)
                before = {name: held for name, held in before.items() if name in DENOISERS}
            elif form == "diffusers":
                source.to(_TORCH[stored]).save_pretrained(part, safe_serialization=True)
            else:
                save_file(dict(_packed(dict(_named(source)), stored)), part, {"format": "pt"})
            count, rounding = _compare(before, load_pipeline(plan_of(plan, part, form, stored)), form, stored)
            size = bytes_at(part)
    return Written(target, count, size, rounding)


def plan_of(plan: LoadPlan, written: Path, form: Form, stored: Stored) -> LoadPlan:
    """Return the plan by which what was written of `plan`'s model is loaded again."""
    again = LoadPlan(written, plan.pipeline, _LOADED.get(stored, "float32"), "cpu", "none", 0, 0)
    if form == "diffusers":
        return again
    described = plan.root if plan.format == "diffusers" else plan.config or plan.base
    if form == "gguf":
        base = plan.root if plan.format == "diffusers" else plan.base
        return replace(again, dtype="float32", format="gguf", config=plan.config or base, base=base)
    return replace(again, format="safetensors", config=described, base=plan.base)


def _check(plan: LoadPlan, target: Path, form: Form, stored: Stored) -> None:
    """Refuse what cannot be written, before anything is loaded."""
    refuse_taken(target)
    if plan.format not in ("diffusers", "safetensors"):
        raise UnsupportedModel(
            f"A {plan.format} model cannot be converted; name a diffusers repository or a safetensors file.",
            field="model",
        )
    if form == "single-file" and target.suffix != ".safetensors":
        raise UnsupportedModel(f"{target.name} must end with .safetensors, as a single file does.", field="output")
    if form == "diffusers" and stored == "fp8":
        raise UnsupportedModel("fp8 is of single files; take --to single-file, or bf16.", field="dtype")
    if form == "gguf":
        _check_gguf(plan, target, stored)
    elif stored in gguf_writing.BLOCKS:
        raise UnsupportedModel(f"{stored} is of GGUF files; take --to gguf, or fp8.", field="dtype")
    if form != "diffusers" and plan.format == "diffusers":
        _placed(set(json.loads((plan.root / "model_index.json").read_text("utf-8"))) & {*read_index(plan.root)})


def _check_gguf(plan: LoadPlan, target: Path, stored: Stored) -> None:
    if target.suffix != ".gguf":
        raise UnsupportedModel(f"{target.name} must end with .gguf, as such a file does.", field="output")
    if stored == "fp8":
        raise UnsupportedModel("fp8 is of safetensors files; take q8_0, which has as many bits.", field="dtype")
    if plan.parts:
        raise UnsupportedModel(
            f"A GGUF file holds the denoiser alone, and has no place for the {sorted(plan.parts)[0]}; name it in "
            "models.yaml beside the file.",
            field="vae",
        )
    if plan.format != "diffusers" and plan.base is None:
        raise UnsupportedModel(
            "A GGUF file holds the denoiser alone, and this single file's other parts would be lost; convert it to "
            "diffusers first.",
            field="to",
        )


def _denoiser(pipe: Any) -> Any:
    return next(part for name, part in _parts(pipe) if name in DENOISERS)


def _check_range(pipe: Any, stored: Stored) -> None:
    """Refuse weights that are too large for float16, which would become infinite."""
    if stored != "fp16":
        return
    for name, part in _parts(pipe):
        for key, tensor in part.state_dict().items():
            if tensor.is_floating_point() and tensor.numel() and tensor.abs().max() > torch.finfo(torch.float16).max:
                raise UnsupportedModel(
                    f"{name}.{key} has numbers too large for fp16; take bf16 or fp32.", field="dtype"
                )


def _parts(pipe: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((name, part) for name, part in sorted(pipe.components.items()) if isinstance(part, torch.nn.Module))


def _placed(names: set[str]) -> dict[str, str]:
    """Return the prefix of each model in a single file. Raises UnsupportedModel for one that has no place there."""
    denoisers = sorted(names & set(DENOISERS))
    places = {name: f"{name}." for name in names if name == "vae" or name.startswith("text_encoder")}
    places |= dict.fromkeys(denoisers, _DENOISER)
    odd = sorted(name for name in names - places.keys() if not name.startswith(("tokenizer", "scheduler", "feature")))
    if odd or len(denoisers) != 1:
        what = odd[0] if odd else f"{len(denoisers)} denoisers"
        raise UnsupportedModel(
            f"The model has {what}, for which a single file has no place; take --to diffusers.", field="to"
        )
    return places


def _named(pipe: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a pipeline by their names in a single file: published ones where there are such here."""
    parts = dict(_parts(pipe))
    places = _placed({*parts})
    if (published := original(pipe)) is not None:
        yield from _once(published)
        return
    for name, part in parts.items():
        found = {places[name] + key: tensor.detach() for key, tensor in part.state_dict().items()}
        if name.startswith("text_encoder") and not text_encoders(found):
            raise UnsupportedModel(
                f"{name} is a {type(part).__name__}, which is read from repositories only; take --to diffusers.",
                field="to",
            )
        yield from _once(found)


def _once(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors, and one that two names share under its first."""
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.shape
        if place not in seen or not tensor.numel():
            yield name, tensor
        seen.add(place)


def _packed(tensors: Mapping[str, torch.Tensor], stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors as they are stored: in fp8 the denoiser's matrices, each with its scale beside it."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            yield name, tensor.contiguous()
        elif stored != "fp8":
            yield name, tensor.to(_TORCH[stored]).contiguous()
        elif _is_matrix(name, tensor):
            scale = (tensor.abs().max() / _FP8_LARGEST).clamp(min=1e-12).float()
            yield name, (tensor / scale).to(_FP8).contiguous()
            yield f"{name.removesuffix('.weight')}.scale_weight", scale
        else:
            yield name, tensor.to(torch.bfloat16).contiguous()
    if stored == "fp8":
        yield f"{_DENOISER}scaled_fp8", torch.empty(0, dtype=_FP8)


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith(_DENOISER) and name.endswith(".weight") and tensor.ndim == 2


def _compare(
    before: Mapping[str, Mapping[str, torch.Tensor]], again: Any, form: Form, stored: Stored
) -> tuple[int, float]:
    """Return how many tensors came back, and the most that one moved. Raises LoadFailed for more than rounding."""
    count, most = 0, 0.0
    others = dict(_parts(again))
    for name, mine in before.items():
        theirs = others[name].state_dict() if name in others else {}
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())
            raise LoadFailed(f"{name} did not come back as it was: {len(odd)} tensors, {odd[0]} say.", field="model")
        for key, tensor in mine.items():
            got, count = theirs[key], count + 1
            if tensor.is_floating_point() and form == "gguf":
                right, moved = gguf_writing.is_within(tensor, got, stored), _moved(tensor, gguf_writing.unpacked(got))
            elif not tensor.is_floating_point():
                right, moved = torch.equal(tensor, got), 0.0
            else:
                right, moved = _within(
                    tensor.float(), got.float(), _DENOISER + key if name in DENOISERS else key, stored
                )
            if not right:
                raise LoadFailed(f"{name}.{key} did not come back within its rounding.", field="model")
            most = max(most, moved)
    return count, most


def _within(tensor: torch.Tensor, got: torch.Tensor, key: str, stored: Stored) -> tuple[bool, float]:
    """True if `got` is what `tensor` is once it is stored; and how far the largest number moved, of its own size."""
    if tensor.shape != got.shape or not tensor.numel():
        return tensor.shape == got.shape, 0.0
    largest, moved = float(tensor.abs().max()), _moved(tensor, got)
    if stored != "fp8" or not _is_matrix(key, tensor):
        dtype = torch.bfloat16 if stored == "fp8" else _TORCH[stored]
        return torch.equal(tensor.to(dtype).float(), got.to(dtype).float()), moved
    bound = tensor.abs() * _FP8_ROUNDING + largest / _FP8_LARGEST * _FP8_LEAST
    return bool(((tensor - got).abs() <= bound).all()), moved


def _moved(tensor: torch.Tensor, got: torch.Tensor) -> float:
    """Return how far a number moved at most, as a share of the largest one."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return float((tensor - got).abs().max()) / largest if largest else 0.0
