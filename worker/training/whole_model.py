"""A model as diffusers saves it: the parts that are not trained once, and linked into each copy that is delivered."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from worker.store.tuned import link

MODEL_INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls those of a part


def write_part(folder: Path, part: nn.Module, metadata: Mapping[str, str]) -> Path:
    """Write a denoiser's config and weights, in the dtype that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = part
    config.save_config(str(folder))
    tensors = {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **metadata})
    return folder


def write_others(folder: Path, pipe: Any, trained: str, pipeline: str) -> None:
    """Write every part of a pipeline but `trained`, as a model of the class `pipeline`; all appear at once or none."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, part in pipe.components.items():
        if part is not None and name != trained and hasattr(part, "save_pretrained"):
            safe = {"safe_serialization": True} if isinstance(part, nn.Module) else {}
            part.save_pretrained(str(partial / name), **safe)
    pipe.save_config(str(partial))
    index = json.loads((partial / MODEL_INDEX).read_text())
    (partial / MODEL_INDEX).write_text(json.dumps(index | {"_class_name": pipeline}, indent=2))
    partial.rename(folder)


def linked(source: Path, target: Path) -> None:
    """Have a folder's files at `target` too, as links where the disk has such, so that they take no room twice."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
