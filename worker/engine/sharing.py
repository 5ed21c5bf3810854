"""Parts that several models have in common, kept in memory once: text encoders, image encoders, VAEs.

Two such parts are one where their weight files have the same content, and class, config and dtype are the same. The
content of a file is known by the digest that it is named by, as in the volume's cache and the Hub's; a file that is
named otherwise is the same as itself only, under however many links.

A shared part is one object in several pipelines. Jobs run one after the other, and whatever one puts on a part comes
off again at its end: so nothing leaks from one model into another. A part goes with the last pipeline that has it.
Denoisers are never shared: what is known of a model stands beside its denoiser. Nor is anything under offloading, or
of a model that is spread over several GPUs, which puts hooks on the parts of a pipeline; or of a model whose weights
are made smaller once they are loaded.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from worker.core.device import LoadPlan

_SHARED = re.compile(r"(text_encoder|image_encoder)(_\d+)?|vae")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# What a config says of where and with what it was made.
_NO_MATTER = re.compile(r"_(?!class_name$).*|transformers_version|(torch_)?dtype")


class SharedParts:
    """The parts that may be shared, of all pipelines that live. Used from the engine's thread only."""

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
        self._device: str | None = None  # of the load that is going on
        self._taken: set[int] = set()

    @contextmanager
    def opened(self, plan: LoadPlan) -> Iterator[None]:
        """Let the load of `plan` take parts that are there, and give those that it makes."""
        global _OPEN
        self._device, self._taken, before = plan.device, set(), _OPEN
        _OPEN = (
            self if plan.offload == "none" and plan.quantizer is None and not plan.cards and plan.ranks == 1 else None
        )
        try:
            yield
        finally:
            _OPEN = before

    def take(self, name: str, key: str, load: Callable[[], Any]) -> Any:
        """Return the part of `key`, loaded if it is not on the device; never the same twice in one pipeline."""
        found = self.find(name, key, self._device)
        part = load() if found is None or id(found) in self._taken else found
        if found is None:
            self._kept[key] = part
        self._taken.add(id(part))
        return part

    def find(self, name: str, key: str, device: str | None) -> nn.Module | None:
        """Return the part of `key` that is on `device`, if it may be shared."""
        part = self._kept.get(key) if may_be_shared(name) else None
        return part if part is not None and _is_on(part, device) else None

    def forget(self, parts: Mapping[str, Any]) -> None:
        """Share these parts with no pipeline that is loaded from now on: their own one has failed."""
        failed = {id(part) for part in parts.values()}
        for key, part in list(self._kept.items()):
            if id(part) in failed:
                del self._kept[key]


_OPEN: SharedParts | None = None


def shared(name: str, cls: type[Any], folder: Path, files: list[Path], dtype: torch.dtype) -> Callable[..., Any]:
    """Return what gets the part `name` by its loader, or from another pipeline while a load may take parts."""
    parts = _OPEN
    if parts is None or not may_be_shared(name):
        return lambda load: load()
    key = key_of(cls, folder, files, dtype)
    return lambda load: parts.take(name, key, load)


def key_of(cls: type[Any], folder: Path, files: list[Path], dtype: torch.dtype) -> str:
    """Return a key that is the same for the same part: its class, dtype, config and the content of its files."""
    try:
        config = json.loads((folder / "config.json").read_bytes().decode("utf-8-sig"))
        config = {name: value for name, value in config.items() if not _NO_MATTER.fullmatch(name)}
    except (OSError, ValueError, AttributeError):
        config = str(folder)  # the loader will say what is wrong
    facts = (cls.__module__, cls.__qualname__, str(dtype), config, sorted(map(_content, files)))
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _content(file: Path) -> str:
    real = file.resolve()
    if real.parent.name == "blobs" and _DIGEST.fullmatch(real.name):
        return real.name
    state = real.stat()
    return f"{state.st_dev}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"


def may_be_shared(name: str) -> bool:
    """True for the name of a component that no model's own knowledge stands beside."""
    return _SHARED.fullmatch(name) is not None


def _is_on(part: nn.Module, device: str | None) -> bool:
    return all(tensor.device.type == device for tensor in (*part.parameters(), *part.buffers()))
