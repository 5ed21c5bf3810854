"""The components of a pipeline: the list in its model_index.json, and one component from its folder."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.json_text import parse_bounded
from worker.core.model import ModelFiles, safetensors_files
from worker.core.single_file import EncoderKind, encoder_kind
from worker.engine.compatibility import pipeline_module
from worker.engine.pretrained import load_pretrained, weight_files
from worker.engine.sharing import SharedParts, key_of, may_be_shared, shared

# Tokenizers whose vocabulary is bundled once, beside the configs that share it: class name to its folder.
_SHARED_VOCABULARIES = {"CLIPTokenizer": "clip", "CLIPTokenizerFast": "clip"}
_VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Component:
    """One entry of a model_index.json."""

    name: str
    library: str
    class_name: str

    @property
    def cls(self) -> type[Any]:
        """The component's class: one of diffusers, of transformers, or of a pipeline's own folder in diffusers.

        Raises UnsupportedModel for everything else: it would be the repository's code.
        """
        libraries = {"diffusers": diffusers, "transformers": transformers}
        library = libraries.get(self.library) or pipeline_module(self.library)
        cls = getattr(library, self.class_name, None)
        if not isinstance(cls, type):
            raise UnsupportedModel(
                f"{self.name} is a {self.library}.{self.class_name}, which neither diffusers {diffusers.__version__} "
                f"nor transformers {transformers.__version__} has here; use a model of classes that they have.",
                field="model",
            )
        return cls

    @property
    def is_model(self) -> bool:
        """True if the component has weights."""
        return issubclass(self.cls, torch.nn.Module)

    @property
    def encoder_kind(self) -> EncoderKind:
        """The kind of text encoder that the component is."""
        return encoder_kind(self.class_name)


def read_index(folder: Path) -> dict[str, Component]:
    """Return the components that a pipeline's folder lists, by name."""
    index = parse_bounded((folder / "model_index.json").read_bytes())
    return {
        name: Component(name, *entry)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
    }


def is_complete(component: Component, folder: Path) -> bool:
    """True if `folder` has all files of `component`; one with weights needs more than its config."""
    if not folder.is_dir():
        return False
    if component.is_model:
        return bool(safetensors_files(folder))
    if "Tokenizer" in component.class_name:
        return _has_vocabulary(folder) or _shared_vocabulary(component, folder) is not None
    return True


def load_component(component: Component, folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Load one component from its own folder. Never code of the folder, never a pickle, never the network.

    Raises CorruptFile for a model that lacks a tensor, or has one too many.
    """
    options: dict[str, Any] = {"local_files_only": True}
    if component.library == "transformers":
        options["trust_remote_code"] = False
    if component.is_model:
        if folder.is_dir() and not safetensors_files(folder):
            raise CorruptFile(
                f"The {component.name} of the model lacks its weights ({component.name}/*.safetensors); complete the "
                "model's folder, or name another.",
                field="model",
                retryable=False,
            )
        if variant and any(f".{variant}" in path.name for path in safetensors_files(folder)):
            options["variant"] = variant
        # Always explicit: left out, transformers keeps the file's dtype and diffusers takes float32.
        what = f"The {component.name} of the model"
        if issubclass(component.cls, diffusers.ModelMixin) and not issubclass(component.cls, diffusers.ConfigMixin):
            return _load_several(component, folder, what, {"dtype": dtype, "use_safetensors": True, **options})
        get = shared(component.name, component.cls, folder, weight_files(folder, variant), dtype)
        return get(partial(load_pretrained, component.cls, folder, what, dtype=dtype, use_safetensors=True, **options))
    vocabulary = _shared_vocabulary(component, folder)
    if vocabulary is not None and not _has_vocabulary(folder):
        return component.cls.from_pretrained(vocabulary, **_pad_token(folder), **options)
    return component.cls.from_pretrained(folder, **options)


def _load_several(component: Component, folder: Path, what: str, options: Mapping[str, Any]) -> Any:
    """Load a class that only holds models of another, as `controlnet`, `controlnet_1` … beside each other.

    Its own `from_pretrained` joins texts, and lets tensors be missing.
    """
    beside = [folder.with_name(f"{folder.name}_{number}") for number in range(1, 100)]
    folders = [folder, *itertools.takewhile(Path.is_dir, beside)]
    names = [str(parse_bounded((each / "config.json").read_bytes())["_class_name"]) for each in folders]
    parts = [Component(component.name, component.library, name) for name in names]
    return component.cls(
        [load_pretrained(part.cls, each, what, **options) for part, each in zip(parts, folders, strict=True)]
    )


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARIES)


def _shared_vocabulary(component: Component, folder: Path) -> Path | None:
    name = _SHARED_VOCABULARIES.get(component.class_name)
    vocabulary = folder.parent.parent / "tokenizers" / name if name else None
    return vocabulary if vocabulary is not None and vocabulary.is_dir() else None


def _pad_token(folder: Path) -> dict[str, str]:
    """Return the padding token of a folder as an option. Stable Diffusion's second CLIP pads with another token."""
    token = parse_bounded((folder / "tokenizer_config.json").read_bytes()).get("pad_token")
    return {"pad_token": token["content"] if isinstance(token, dict) else token} if token else {}


def held_bytes(parts: SharedParts, files: ModelFiles, dtype: torch.dtype, device: str) -> int:
    """Return the bytes of a model's parts that are on the device already, in another pipeline."""
    held: dict[int, int] = {}
    for root in (files.root, files.base):
        if root is None or not (root / "model_index.json").is_file():
            continue
        for name, component in read_index(root).items():
            folder = root / name
            if not may_be_shared(name) or name in files.parts or not safetensors_files(folder):
                continue
            key = key_of(component.cls, folder, weight_files(folder, files.variant), dtype)
            part = parts.find(name, key, device)
            if part is not None:
                held[id(part)] = sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
    return sum(held.values())


def schedule(pipe: Any, name: str | None, options: Mapping[str, Any]) -> None:
    """Give `pipe` the scheduler that its weights were trained for: a class or options other than its config has."""
    if getattr(pipe, "scheduler", None) is not None and (name or options):
        cls = getattr(diffusers, name) if name else type(pipe.scheduler)
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **options)
