"""A pipeline from one weight file: its parts by name, missing parts from a base repository, classes from a config.

diffusers' own `from_single_file` of pipelines is not used: it guesses (any unknown file is Stable Diffusion 1 to it),
drops scales, asks the network for configs, and only a third of the classes have it.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, LoadFailed, UnsupportedModel
from worker.core.model import DENOISERS, NEVER_COMPLETED
from worker.core.single_file import EncoderKind, unwrapped
from worker.engine import conversion, layouts
from worker.engine.classes import DTYPES, pipeline_class
from worker.engine.components import Component, is_complete, load_component, read_index
from worker.engine.quantization import Weights, bundle, dequantize, is_nvfp4, is_packed, packed_config, unbundle, unpack
from worker.engine.skeletons import Skeletons, filled, skeleton
from worker.engine.weight_file import Wanted, read_tensors

_LOG = logging.getLogger(__name__)
_ALIGNMENT = 64  # bytes: a cache line, and the alignment of torch's allocations


def load_checkpoint(plan: LoadPlan) -> Any:
    """Load a pipeline from a safetensors or GGUF file: a whole checkpoint, or a denoiser completed from `plan.base`.

    Raises UnsupportedModel for a file that cannot be completed, CorruptFile for a file that lacks tensors.
    """
    cls = pipeline_class(plan.pipeline)
    config = plan.config or plan.base
    if config is None:
        raise UnsupportedModel(
            f"A single file of a {plan.pipeline} needs to be told what its parts are; "
            "name the repository that it was made from as base in models.yaml.",
            field="model",
        )
    index, dtype = read_index(config), DTYPES[plan.dtype]
    required, optional = cls._get_signature_keys(cls)
    listed = [index[name] for name in sorted(required) if name in index and name not in NEVER_COMPLETED]
    components: dict[str, Any] = dict.fromkeys(required)
    with _reading(plan.root, dtype, listed, mapped=plan.device != "cpu") as parts:
        skeletons = Skeletons()
        for component in listed:
            if component.name not in plan.parts:
                components[component.name] = _ahead(component, plan, config, skeletons)
        weights = _by_component(index, parts.result())
    for component in listed:
        if component.name in plan.parts:
            components[component.name] = load_part(index, component.name, plan.parts[component.name], config, dtype)
        elif components[component.name] is None:
            components[component.name] = _component(component, weights, plan, config, skeletons)
    return cls(**components, **_settings([config, plan.base or config], optional))


@contextmanager
def _reading(
    path: Path, dtype: torch.dtype, components: Iterable[Component], *, mapped: bool
) -> Iterator[Future[dict[str, list[Weights]]]]:
    """Have the parts of a file read meanwhile; given up where what is done meanwhile fails."""
    given_up = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="read file") as reader:
        read = partial(_read, path, dtype, _wanted(components, dtype), mapped=mapped, given_up=given_up)
        try:
            yield reader.submit(read)
        except BaseException:
            given_up.set()
            raise


def _ahead(component: Component, plan: LoadPlan, config: Path, skeletons: Skeletons) -> Any:
    """Return a component that has no weights; of one whose weights must be in the file make the skeleton ready."""
    folders = _folders(plan, config)
    if not component.is_model:
        return _from_folders(component, folders, DTYPES[plan.dtype])
    if component.library == "diffusers" and not any(_is_there(component, folder) for folder in folders):
        settings = _config_of(component, _config_folder(component, folders))
        skeletons.prepare(component.cls, settings)
    return None


def load_part(index: Mapping[str, Component], name: str, path: Path, config: Path, dtype: torch.dtype) -> Any:
    """Load one component from elsewhere: its own folder, a pipeline's folder that has one, or a weight file.

    `index` and `config` are of the model that it is for: they give the component's class and config.
    """
    component = index.get(name)
    if component is None:
        raise UnsupportedModel(
            f"components: this model has no {name}; it has {', '.join(sorted(index))}.", field="components"
        )
    if path.is_dir():
        return load_component(component, path / name if (path / name).is_dir() else path, dtype)
    parts = _read(path, dtype, _wanted([component], dtype), mapped=True)
    part = next((weights for kind in parts for weights in parts[kind]), None)
    if part is None or len(parts) > 1:
        raise UnsupportedModel(
            f"{name}: the file holds {len(parts)} parts of a model; name a file with the {name} alone.", field=name
        )
    return _aligned(_build(component, part, config, dtype, Skeletons()))


def _wanted(components: Iterable[Component], dtype: torch.dtype) -> Wanted:
    """Return how a file of these is read: a text encoder keeps some weights as they are, as `_kept_in_float32` says."""
    classes = [component.cls for component in components if component.library == "transformers"]
    return Wanted(dtype, frozenset().union(*(_kept_in_float32(cls, dtype) for cls in classes)))


def _kept_in_float32(cls: Any, dtype: torch.dtype) -> frozenset[str]:
    """T5 overflows in float16 in its output projections, and names them itself."""
    kept = getattr(cls, "_keep_in_fp32_modules", None) or ()  # a tokenizer has none
    return frozenset(kept) if dtype is torch.float16 else frozenset()


def _read(
    path: Path, dtype: torch.dtype, wanted: Wanted, *, mapped: bool, given_up: threading.Event | None = None
) -> dict[str, list[Weights]]:
    """Read the parts of a file, scaled fp8 made plain; GGUF matrices and nvfp4 tensors stay packed."""
    if path.suffix == ".gguf":
        from worker.engine.gguf_weights import read_gguf  # its package is an extra one

        return conversion.split(read_gguf(path, dtype))
    weights = unwrapped(read_tensors(path, wanted, mapped=mapped, given_up=given_up))
    return conversion.split(bundle(weights) if is_nvfp4(weights) else dequantize(weights, dtype))


def _component(
    component: Component, parts: Mapping[str, Weights], plan: LoadPlan, config: Path, skeletons: Skeletons
) -> Any:
    """Return a component from the file, else from the config's folder, else from the base repository."""
    dtype, weights = DTYPES[plan.dtype], parts.get(component.name)
    folders = _folders(plan, config)
    if weights is not None:
        model = _build(component, weights, _config_folder(component, folders), dtype, skeletons)
        return _aligned(model) if plan.device == "cpu" else model
    part = _from_folders(component, folders, dtype)
    if part is not None:
        return part
    if component.name == "text_encoder_3" or (component.name == "tokenizer_3" and "text_encoder_3" not in parts):
        return None  # Stable Diffusion 3 was also published without its T5: the pipeline runs without it
    raise UnsupportedModel(
        f"The file has no {component.name} ({component.class_name}) and no base repository gives one; "
        "name the repository that it was made from as base in models.yaml.",
        field="model",
        details={"missing": component.name},
    )


def _folders(plan: LoadPlan, config: Path) -> list[Path]:
    return [folder for folder in (config, plan.base) if folder is not None]


def _config_folder(component: Component, folders: Sequence[Path]) -> Path:
    """Return the folder whose config a component in the file has.

    The base has the sizes of files made from it; a bundled config has the family's usual ones.
    """
    return next((folder for folder in reversed(folders) if (folder / component.name).is_dir()), folders[0])


def _config_of(component: Component, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = component.cls.load_config(str(folder), subfolder=component.name, local_files_only=True)
    return settings


def _from_folders(component: Component, folders: Iterable[Path], dtype: torch.dtype) -> Any:
    """Return a component from the first folder that has all of it; None where none has."""
    for folder in folders:
        if _is_there(component, folder):
            entry = read_index(folder).get(component.name, component)  # of the folder's own class
            return load_component(entry, folder / entry.name, dtype)
    return None


def _is_there(component: Component, folder: Path) -> bool:
    entry = read_index(folder).get(component.name, component)
    return is_complete(entry, folder / entry.name)


def _aligned(model: Any) -> Any:
    """Give tensors that lie at any byte of a mapped file, or within a fused tensor, memory of their own.

    A CPU's matrix kernels take other paths there and round differently, so that the same weights would not generate
    the same image bit by bit.
    """
    for tensor in model.parameters():
        if tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def _build(component: Component, weights: Weights, config: Path, dtype: torch.dtype, skeletons: Skeletons) -> Any:
    """Return the component with `weights`, which are given up: with the tensors that they become they are too many."""
    if is_packed(weights) and component.name not in DENOISERS:
        weights = unpack(weights, dtype)
    if component.library == "transformers":
        model = _text_encoder(component, weights, config, dtype)
    else:
        model = _diffusers_model(component, weights, config, dtype, skeletons)
    # Tensors that the file did not give have no memory yet.
    _check_none_missing(component.name, [name for name, tensor in model.named_parameters() if tensor.is_meta])
    return model.eval()


def _check_none_missing(component: str, missing: list[str]) -> None:
    if missing:
        raise CorruptFile(
            f"The file lacks {len(missing)} tensors of its {component} ({missing[0][:80]}, say); "
            "it is damaged, or of another kind than its other tensors say.",
            field="model",
            retryable=False,
        )


def _diffusers_model(
    component: Component, weights: Weights, config: Path, dtype: torch.dtype, skeletons: Skeletons
) -> Any:
    cls = component.cls
    settings = _config_of(component, config)
    fit = layouts.fit(component.name, cls, weights, settings, skeletons)
    weights.clear()
    # Not hasattr: more classes inherit from_single_file than it can read.
    if is_packed(fit.weights) and component.class_name in SINGLE_FILE_LOADABLE_CLASSES:
        return cls.from_single_file(
            unbundle(fit.weights),  # in exactly the names of the model, so that diffusers converts nothing
            config=str(config),
            subfolder=component.name,
            dtype=dtype,
            local_files_only=True,
            quantization_config=packed_config(fit.weights, dtype),
            **fit.changes,
        )
    plain = unpack(fit.weights, dtype) if is_packed(fit.weights) else fit.weights
    return filled(skeletons.take(cls, {**settings, **fit.changes}), plain, dtype)


def _text_encoder(component: Component, weights: Weights, config: Path, dtype: torch.dtype) -> Any:
    cls = component.cls
    settings = cls.config_class.from_pretrained(str(config), subfolder=component.name, local_files_only=True)
    model: Any = skeleton(lambda: cls(settings))
    converted = _ENCODER_NAMES[component.encoder_kind](weights, model)
    weights.clear()
    kept = _kept_in_float32(cls, dtype)
    for name, tensor in converted.items():
        converted[name] = tensor.to(torch.float32 if kept & set(name.split(".")) else dtype).contiguous()
    model.load_state_dict(converted, strict=False, assign=True)
    model.tie_weights()
    head = model.get_output_embeddings()
    if head is not None and head.weight.is_meta:
        # Files of text encoders leave the head out: a pipeline reads the hidden states, never the words.
        head.weight = model.get_input_embeddings().weight
    return model.requires_grad_(False)


_ENCODER_NAMES: Mapping[EncoderKind, Callable[[Weights, Any], Weights]] = {
    "clip": conversion.clip_names,
    "t5": conversion.t5_names,
    "llm": conversion.language_model_names,
}


def _by_component(index: Mapping[str, Component], parts: Mapping[str, list[Weights]]) -> dict[str, Weights]:
    """Return each part of the file by its component: text encoders of one kind stand in the same order in both."""
    names = {"denoiser": sorted(index.keys() & set(DENOISERS)), "vae": ["vae"]}
    for name in sorted(index):
        if name.startswith("text_encoder"):
            names.setdefault(index[name].encoder_kind, []).append(name)
    components: dict[str, Weights] = {}
    for kind, weights in parts.items():
        components.update(zip(names.get(kind, ()), weights, strict=False))
    if not components.keys() & set(DENOISERS):
        raise LoadFailed(
            "The file holds no denoiser that its config knows; its config is of another family.", field="model"
        )
    _LOG.info("the file holds %s", ", ".join(sorted(components)))
    return components


def _settings(folders: list[Path], optional: set[str]) -> dict[str, Any]:
    """Return a pipeline's settings beside its components; the last folder that has one wins."""
    index: dict[str, Any] = {}
    for folder in folders:
        index |= json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    settings = {name: index[name] for name in optional if name in index and not isinstance(index[name], list)}
    if "requires_safety_checker" in optional:
        settings["requires_safety_checker"] = False
    return settings
