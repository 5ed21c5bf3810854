"""A pipeline from one weight file: its parts by name, missing parts from a base repository, classes from a config.

diffusers' own `from_single_file` of pipelines is not used: it guesses (any unknown file is Stable Diffusion 1 to it),
drops scales, asks the network for configs, and only a third of the classes have it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, LoadFailed, UnsupportedModel
from worker.core.model import DENOISERS, NEVER_COMPLETED
from worker.core.single_file import EncoderKind, unwrapped
from worker.engine import conversion, layouts
from worker.engine.classes import DTYPES, pipeline_class
from worker.engine.components import Component, is_complete, load_component, read_index
from worker.engine.quantization import Weights, bundle, dequantize, is_nvfp4, is_packed, packed_config, unbundle, unpack
from worker.engine.weight_file import read_tensors

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
    index = read_index(config)
    weights = _by_component(index, _read(plan.root, DTYPES[plan.dtype], mapped=plan.device != "cpu"))
    required, optional = cls._get_signature_keys(cls)
    components: dict[str, Any] = {}
    for name in required:
        if name in plan.parts:
            components[name] = load_part(index, name, plan.parts[name], config, DTYPES[plan.dtype])
        elif name in index and name not in NEVER_COMPLETED:
            components[name] = _component(index[name], weights, plan, config)
        else:
            components[name] = None
    return cls(**components, **_settings([config, plan.base or config], optional))


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
    parts = _read(path, dtype)
    part = next((weights for kind in parts for weights in parts[kind]), None)
    if part is None or len(parts) > 1:
        raise UnsupportedModel(
            f"{name}: the file holds {len(parts)} parts of a model; name a file with the {name} alone.", field=name
        )
    return _aligned(_build(component, part, config, dtype))


def _read(path: Path, dtype: torch.dtype, *, mapped: bool = True) -> dict[str, list[Weights]]:
    """Read the parts of a file, scaled fp8 made plain; GGUF matrices and nvfp4 tensors stay packed."""
    if path.suffix == ".gguf":
        from worker.engine.gguf_weights import read_gguf  # its package is an extra one

        return conversion.split(read_gguf(path, dtype))
    weights = unwrapped(read_tensors(path, mapped=mapped))
    return conversion.split(bundle(weights) if is_nvfp4(weights) else dequantize(weights, dtype))


def _component(component: Component, parts: Mapping[str, Weights], plan: LoadPlan, config: Path) -> Any:
    """Return a component from the file, else from the config's folder, else from the base repository."""
    dtype, weights = DTYPES[plan.dtype], parts.get(component.name)
    folders = [folder for folder in (config, plan.base) if folder is not None]
    if weights is not None:
        # The base has the sizes of files made from it; a bundled config has the family's usual ones.
        config_folder = next((folder for folder in reversed(folders) if (folder / component.name).is_dir()), config)
        model = _build(component, weights, config_folder, dtype)
        return _aligned(model) if plan.device == "cpu" else model
    for folder in folders:
        entry = read_index(folder).get(component.name, component)  # of the folder's own class
        if is_complete(entry, folder / entry.name):
            return load_component(entry, folder / entry.name, dtype)
    if component.name == "text_encoder_3" or (component.name == "tokenizer_3" and "text_encoder_3" not in parts):
        return None  # Stable Diffusion 3 was also published without its T5: the pipeline runs without it
    raise UnsupportedModel(
        f"The file has no {component.name} ({component.class_name}) and no base repository gives one; "
        "name the repository that it was made from as base in models.yaml.",
        field="model",
        details={"missing": component.name},
    )


def _aligned(model: Any) -> Any:
    """Give tensors that lie at any byte of a mapped file, or within a fused tensor, memory of their own.

    A CPU's matrix kernels take other paths there and round differently, so that the same weights would not generate
    the same image bit by bit.
    """
    for tensor in model.parameters():
        if tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def _build(component: Component, weights: Weights, config: Path, dtype: torch.dtype) -> Any:
    if is_packed(weights) and component.name not in DENOISERS:
        weights = unpack(weights, dtype)
    if component.library == "transformers":
        model = _text_encoder(component, weights, config, dtype)
    else:
        model = _diffusers_model(component, weights, config, dtype)
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


def _diffusers_model(component: Component, weights: Weights, config: Path, dtype: torch.dtype) -> Any:
    cls = component.cls
    settings = cls.load_config(str(config), subfolder=component.name, local_files_only=True)
    fit = layouts.fit(component.name, cls, weights, settings)
    # Not hasattr: more classes inherit from_single_file than it can read.
    if component.class_name in SINGLE_FILE_LOADABLE_CLASSES:
        packed = is_packed(fit.weights)
        quantization = {"quantization_config": packed_config(fit.weights, dtype)} if packed else {}
        return cls.from_single_file(
            unbundle(fit.weights),  # in exactly the names of the model, so that diffusers converts nothing
            config=str(config),
            subfolder=component.name,
            dtype=dtype,
            local_files_only=True,
            **fit.changes,
            **quantization,
        )
    model = cls.from_config({**settings, **fit.changes})
    model.load_state_dict(unpack(fit.weights, dtype) if is_packed(fit.weights) else fit.weights)
    return model.to(dtype)


def _text_encoder(component: Component, weights: Weights, config: Path, dtype: torch.dtype) -> Any:
    cls = component.cls
    settings = cls.config_class.from_pretrained(str(config), subfolder=component.name, local_files_only=True)
    with init_empty_weights():
        model = cls(settings)
    converted = _ENCODER_NAMES[component.encoder_kind](weights, model)
    # T5 overflows in float16 in its output projections, and names them itself.
    kept_in_fp32 = set(cls._keep_in_fp32_modules or ()) if dtype is torch.float16 else set()
    for name, tensor in converted.items():
        converted[name] = tensor.to(torch.float32 if kept_in_fp32 & set(name.split(".")) else dtype).contiguous()
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
