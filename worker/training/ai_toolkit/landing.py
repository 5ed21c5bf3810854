"""The gate of every LoRA, for a file that another program wrote: do its layers find their places in the model?

The denoiser is built without weights, from its config alone: that takes no memory and no device.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
from accelerate import init_empty_weights
from torch import nn

from worker.core.adapter import LoraFiles
from worker.engine.adapters.lora import match
from worker.engine.adapters.matching import DENOISERS


def check_landing(root: Path, lora: LoraFiles, model: str) -> None:
    """Raise IncompatibleAdapter unless at least 95 % of a LoRA's layers are layers of the model in `root`."""
    match(SimpleNamespace(components=denoisers(root)), lora, model)


def denoisers(root: Path) -> dict[str, nn.Module]:
    """Return the denoisers of a folder in diffusers' layout, without their weights."""
    index = json.loads((root / "model_index.json").read_text())
    return {name: _built(root, name, index[name]) for name in DENOISERS if _is_ours(index.get(name))}


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers" and hasattr(diffusers, str(entry[1]))


def _built(root: Path, name: str, entry: list[str]) -> nn.Module:
    cls = getattr(diffusers, entry[1])
    with init_empty_weights():
        built: nn.Module = cls.from_config(cls.load_config(root, subfolder=name))
    return built
