"""One model from its folder, with every tensor accounted for: none missing, none left over, none of another shape.

diffusers and transformers only log such tensors. A missing one is then random: no two processes draw the same image.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from worker.core.errors import CorruptFile
from worker.core.model import safetensors_files
from worker.core.wrappers import AROUND_ANY, PARALLEL, PEFT_LAYER, PEFT_MODEL
from worker.engine.mirror import mirrored

_LOG = logging.getLogger(__name__)
# What wrappers add to names when a model is saved without being unwrapped, before a name and within one.
_LEADING = rf"^(?:(?:{'|'.join(map(re.escape, (PARALLEL, PEFT_MODEL, *AROUND_ANY)))})\.)+"
_INNER = rf"\.(?:(?:{'|'.join((PEFT_LAYER, *AROUND_ANY))})\.)+"
_WRAPPED = re.compile(f"{_LEADING}|{_INNER}")
# Numbers that no class needs from a file: it makes them itself, or counts with them in training only.
_NO_WEIGHT = re.compile(r"(^|\.)(position_ids|inv_freq|num_batches_tracked|_extra_state)$")
# Buffers that training fills; a class makes all its others itself.
_TRAINED_BUFFER = re.compile(r"(^|\.)running_(mean|var)$")


def load_pretrained(cls: Any, folder: Path, what: str, *, field: str = "model", **options: Any) -> Any:
    """Load a model by the `from_pretrained` of its class. Raises CorruptFile about `what`, naming a tensor."""
    with mirrored(folder) as readable:
        model, report = _load(cls, readable, options)
    _check(model, report, what, field)
    return model


def _load(cls: Any, folder: Path, options: dict[str, Any]) -> tuple[Any, Mapping[str, Iterable[Any]]]:
    """Return the model, and the report that its library makes of it."""
    files = weight_files(folder, options.get("variant"))
    wrapped = [name for file in files for name in _names(file) if _WRAPPED.search(name)]
    if wrapped and issubclass(cls, ModelMixin):
        return _load_unwrapped(cls, folder, files, options["dtype"])
    if wrapped:
        options["key_mapping"] = {f"^{re.escape(name)}$": _unwrapped(name) for name in wrapped}
    model, report = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    return model, report


def _check(model: Any, report: Mapping[str, Iterable[Any]], what: str, field: str) -> None:
    """Raise CorruptFile for what a load reported, unless no image can depend on it."""
    kind = type(model).__name__
    missing = sorted(_needed(model, report["missing_keys"]))
    if missing:
        raise CorruptFile(
            f"{what} lacks {_count(missing)} of a {kind} ({missing[0][:120]}, say): it is damaged or was saved "
            "incompletely; fetch the model again or use another.",
            field=field,
            details={"missing": missing[:3]},
            retryable=False,
        )
    mismatched = sorted(report["mismatched_keys"], key=lambda entry: str(entry[0]))
    if mismatched:
        name, shape, expected = mismatched[0]
        raise CorruptFile(
            f"{what} has {_count(mismatched)} of another shape than its config says ({str(name)[:120]} is "
            f"{_shown(shape)}, not {_shown(expected)}, say); use a repository whose config belongs to its weights.",
            field=field,
            details={"mismatched": [str(entry[0]) for entry in mismatched[:3]]},
            retryable=False,
        )
    unexpected = sorted(_meant(model, report["unexpected_keys"]))
    if unexpected:
        raise CorruptFile(
            f"{what} has {_count(unexpected)} that a {kind} of its config does not have ({unexpected[0][:120]}, say): "
            "they would be left out; use a repository whose config belongs to its weights, with adapters merged.",
            field=field,
            details={"unexpected": unexpected[:3]},
            retryable=False,
        )


def _needed(model: Any, missing: Iterable[str]) -> list[str]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in missing if name in parameters or _TRAINED_BUFFER.search(name)]


def _meant(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Return the tensors that were meant for `model`, of those that it did not take."""
    names = [name for name in unexpected if not _NO_WEIGHT.search(name)]
    if getattr(model, "hf_quantizer", None) is not None:
        return []  # scales and maps beside the packed tensors, by each method's own names
    others = [name for name in names if _is_of_another(name.split(".")[0], model)]
    if others:
        _LOG.info("%d tensors of another model than a %s are left out", len(others), type(model).__name__)
    return [name for name in names if name not in others]


def _is_of_another(module: str, model: Any) -> bool:
    """True if a module at the top of a file belongs to another model, so that no image depends on it here."""
    if isinstance(model, PreTrainedModel):
        # Its class may be one tower of a larger model that was published whole.
        return module not in {name.split(".")[0] for name in model.state_dict()} | {model.base_model_prefix}
    # A ControlNet that borrows modules of its base is saved with them, and has none of its own in their place.
    return hasattr(model, "from_transformer") and getattr(model, module, model) is None


def _load_unwrapped(
    cls: Any, folder: Path, files: Iterable[Path], dtype: torch.dtype
) -> tuple[Any, Mapping[str, list[Any]]]:
    """Load a diffusers model whose tensors have a wrapper's names; return it with a report as diffusers makes it."""
    config = cls.load_config(str(folder), local_files_only=True)
    with init_empty_weights():
        model = cls.from_config(config)
    kept_in_fp32 = set(cls._keep_in_fp32_modules or ()) if dtype is not torch.float32 else set()
    weights = {_unwrapped(name): tensor for file in files for name, tensor in load_file(file).items()}
    expected = model.state_dict()
    mismatched = [
        (name, weights.pop(name).shape, tensor.shape)
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            kind = torch.float32 if kept_in_fp32 & set(name.split(".")) else dtype
            weights[name] = tensor.to(kind, copy=True)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    report = {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": mismatched}
    return model.requires_grad_(False).eval(), report


def _unwrapped(name: str) -> str:
    return re.sub(_INNER, ".", re.sub(_LEADING, "", name))


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the safetensors files that are loaded: those of the variant where there are any."""
    files = safetensors_files(folder)
    of_variant = [path for path in files if variant and f".{variant}" in path.name]
    return of_variant or [path for path in files if path.name.count(".") == 1]


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _count(items: list[Any]) -> str:
    return f"{len(items)} tensor{'s' if len(items) > 1 else ''}"


def _shown(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
