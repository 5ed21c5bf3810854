"""Weights that were made smaller, written once and read again as they are: no plain weight is read, none is packed."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.quantizers.gguf.utils import GGUFParameter
from gguf import GGMLQuantizationType
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile
from worker.engine.classes import DTYPES
from worker.engine.components import Component
from worker.engine.gguf_weights import PackedLinear
from worker.engine.precision import is_reduced
from worker.engine.weight_file import read_tensors

_FILE = "model.safetensors"
_PACKED = "packed"  # in the file's metadata: the kind of GGUF's blocks of each packed tensor


def save_reduced(pipe: Any, folder: Path) -> None:
    """Write every component of `pipe` with layers that were made smaller into a folder of its name below `folder`."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and is_reduced(part):
            _save(part, folder / name)


def _save(part: nn.Module, folder: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    packed: dict[str, str] = {}
    seen: set[int] = set()
    for name, tensor in part.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        parameter = getattr(part.get_submodule(owner), leaf)
        if id(parameter) in seen:  # tied to another one
            continue
        seen.add(id(parameter))
        if isinstance(parameter, GGUFParameter):
            packed[name] = GGMLQuantizationType(parameter.quant_type).name
            tensor = parameter.as_tensor()
        tensors[name] = tensor.detach().cpu().contiguous()
    folder.mkdir(parents=True)
    if isinstance(part, ModelMixin):
        part.save_config(folder)
    else:
        part.config.save_pretrained(folder)
    save_file(tensors, folder / _FILE, {_PACKED: json.dumps(packed)})


def load_reduced(component: Component, folder: Path, plan: LoadPlan) -> Any:
    """Return a component as `save_reduced` has written it. Raises CorruptFile if it lacks a tensor."""
    with init_empty_weights():
        if issubclass(component.cls, ModelMixin):
            model = component.cls.from_config(component.cls.load_config(str(folder), local_files_only=True))
        else:
            model = component.cls(component.cls.config_class.from_pretrained(str(folder), local_files_only=True))
    model.requires_grad_(False)
    with safe_open(folder / _FILE, framework="pt") as opened:
        packed = json.loads((opened.metadata() or {})[_PACKED])
    for name, tensor in read_tensors(folder / _FILE, mapped=plan.device != "cpu").items():
        owner, _, leaf = name.rpartition(".")
        if name in packed:
            _pack(model, owner, GGMLQuantizationType[packed[name]], tensor, plan)
            continue
        module = model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    lacking = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if lacking:
        raise CorruptFile(
            f"The reduced weights of the {component.name} lack {len(lacking)} tensors ({lacking[0][:80]}, say); remove "
            "them from the volume, or write them again with `quantize`.",
            field="precision",
            retryable=False,
        )
    return model.eval()


def _pack(model: nn.Module, path: str, kind: GGMLQuantizationType, blocks: torch.Tensor, plan: LoadPlan) -> None:
    """Put a layer of packed weights in the place of the plain one at `path`."""
    plain = model.get_submodule(path)
    with init_empty_weights():
        layer = PackedLinear(plain.in_features, plain.out_features, plain.bias is not None, DTYPES[plan.dtype])
    layer.weight = GGUFParameter(blocks, quant_type=kind)
    layer.bias = plain.bias
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer.requires_grad_(False))
