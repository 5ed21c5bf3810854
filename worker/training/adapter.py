"""The adapter that learns: laid into a denoiser by peft, and written as a file that every program reads."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save, save_file
from torch import nn

from worker.core.errors import UnsupportedModel
from worker.core.own_training import Targets
from worker.core.training import WORDS, Method, TrainingOptions

_ADAPTER = "trained"
_ATTENTION = re.compile(r"(^|[._])attn\d*|attention", re.I)
_BESIDE = re.compile(r"embed|norm|modulation", re.I)
_NUMBERED = re.compile(r"(^|\.)\d+\.")
_SPELLED = {  # a tensor's role in peft's keys -> in kohya's
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
}


def targets_in(denoiser: nn.Module, targets: Targets) -> list[str]:
    """Return the names of the layers that learn: those of repeated blocks, which every family has."""
    kinds = (nn.Linear, nn.Conv2d) if targets == "all" else (nn.Linear,)
    found = [name for name, module in denoiser.named_modules() if isinstance(module, kinds)]
    found = [name for name in found if not _BESIDE.search(name)]
    # Where no name says block, as in Z-Image's, it is a number among several.
    names = [name for name in found if "block" in name] or [name for name in found if _NUMBERED.search(name)]
    if targets == "attention":
        names = [name for name in names if _ATTENTION.search(name)]
    if not names:
        raise UnsupportedModel(
            f"{type(denoiser).__name__} has no layers that targets={targets!r} means, or its file keeps them in a form "
            "of their own; choose other targets, or a repository of plain weights and a precision.",
            field="targets",
        )
    return names


def text_targets(encoder: nn.Module) -> list[str]:
    """Return the names of a text encoder's layers that learn: the linear ones of its blocks."""
    return [name for name, each in encoder.named_modules() if isinstance(each, nn.Linear) and _NUMBERED.search(name)]


def attach(
    module: nn.Module, options: TrainingOptions, names: Sequence[str] | None = None
) -> list[tuple[str, nn.Parameter]]:
    """Lay a fresh adapter into a module, whose own weights are frozen; return what learns, in a fixed order.

    Into the layers `names`, else into those that the options mean in a denoiser. With nothing learnt the adapter
    changes nothing. Its weights are float32 and determined by the seed.
    """
    module.requires_grad_(False)
    pattern = "|".join(map(re.escape, names or targets_in(module, options.targets)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        inject_adapter_in_model(_config(options.method, options.rank, pattern), module, _ADAPTER)
    learning = sorted((name, each) for name, each in module.named_parameters() if each.requires_grad)
    for _, parameter in learning:
        parameter.data = parameter.data.float()
    return learning


def _config(method: Method, rank: int, pattern: str) -> Any:
    match method:
        case "loha":
            return LoHaConfig(r=rank, alpha=rank, target_modules=pattern)
        case "lokr":
            return LoKrConfig(r=rank, alpha=rank, target_modules=pattern)
        case _:
            return LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern, use_dora=method == "dora")


def weights_of(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """Return the adapter's weights by peft's names, as float32 on the CPU."""
    state = get_peft_model_state_dict(denoiser, adapter_name=_ADAPTER)
    return {key: value.detach().float().cpu().contiguous() for key, value in sorted(state.items())}


def set_weights(denoiser: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put back what `weights_of` returned."""
    result = set_peft_model_state_dict(denoiser, dict(weights), adapter_name=_ADAPTER)
    if result is not None and result.unexpected_keys:
        raise ValueError(f"{len(result.unexpected_keys)} weights of a checkpoint are of another adapter")


def write_adapter(path: Path, hosts: Mapping[str, nn.Module], rank: int, metadata: Mapping[str, str]) -> Path:
    """Write the adapter for diffusers at `path`, and beside it `…-kohya.safetensors`; both appear whole or not at all.

    `hosts` are the components that have it, by their names in the pipeline. Returns the path.
    """
    plain: dict[str, torch.Tensor] = {}
    kohya: dict[str, torch.Tensor] = {}
    for prefix, module in hosts.items():
        for key, value in weights_of(module).items():
            stem, role = _split(key.removeprefix("base_model.model."))
            plain[f"{prefix}.{stem}.{role}"] = value
            flat = f"lora_{_flat(prefix, hosts)}_{stem.replace('.', '_')}"
            kohya[f"{flat}.{_SPELLED.get(role, role)}"] = value.reshape(-1, 1) if "magnitude" in role else value
            kohya[f"{flat}.alpha"] = torch.tensor(float(rank))
            if not role.startswith("lora_"):  # without it readers of LoHa and LoKr disagree
                plain[f"{prefix}.{stem}.alpha"] = torch.tensor(float(rank))
    for target, tensors in ((path, plain), (path.with_name(f"{path.stem}-kohya.safetensors"), kohya)):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file(tensors, partial, metadata={**metadata, **hashes_of(tensors)})
        partial.replace(target)
    return path


def _flat(prefix: str, hosts: Mapping[str, nn.Module]) -> str:
    """Return a component's name as kohya's keys have it: te, or te1 and te2 where there are two."""
    if not prefix.startswith("text_encoder"):
        return prefix
    number = prefix.removeprefix("text_encoder").removeprefix("_") or "1"
    return f"te{number}" if "text_encoder_2" in hosts else "te"


def _split(key: str) -> tuple[str, str]:
    """Split a key of peft into the layer's name and the tensor's role there."""
    match = re.fullmatch(r"(.+?)\.((?:lora_|hada_|lokr_).+)", key)
    if match is None:
        raise ValueError(f"{key} is no weight of an adapter")
    role = match[2].removesuffix(f".{_ADAPTER}")
    return match[1], role.replace(f".{_ADAPTER}.", ".")


def hashes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the hash that trainers write: of the tensors without metadata, so that it outlives a change of notes."""
    digest = hashlib.sha256(save(dict(tensors))).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def describe(
    options: TrainingOptions, model: str, architecture: str | None, dataset: str, images: int
) -> dict[str, str]:
    """Return the metadata of a file: what it is for, and all that it was made from. Prompts of samples stay out."""
    network = {"lora": "networks.lora", "dora": "networks.lora"}.get(options.method, "lycoris.kohya")
    settings = options.model_dump(mode="json", exclude={*WORDS})
    kind = {"embedding": "/textual-inversion", "full": ""}.get(options.method, "/lora")
    adapter = {
        "ss_network_module": network,
        "ss_network_dim": str(options.rank),
        "ss_network_alpha": str(options.rank),
    }
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture or model}{kind}",
        "modelspec.trigger_phrase": options.trigger,
        "modelspec.implementation": "diffusers",
        "ss_base_model_version": architecture or "",
        "ss_sd_model_name": model,
        **({} if options.method == "full" else adapter),
        "ss_num_train_images": str(images),
        "ss_seed": str(options.seed),
        "training.settings": json.dumps(settings, sort_keys=True),
        "training.dataset_sha256": dataset,
    }
