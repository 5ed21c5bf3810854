"""Detection of repositories by their JSON files: diffusers pipelines here, single components in `standalone.py`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import TypeGuard

from worker.catalog.architectures import Architecture, by_class, siblings
from worker.catalog.config_bounds import check_numbers
from worker.catalog.detectors.modular import MODULAR_INDEX, ordinary_index
from worker.catalog.detectors.standalone import component, peft_adapter, quantization_method
from worker.catalog.pipelines.names import named_medium, named_task
from worker.core.errors import UnsupportedModel
from worker.core.model import DENOISERS, Detection, Kind, Task

Configs = Mapping[str, Mapping[str, object]]

_KERNEL = re.compile(r"[/:@]")  # org/kernel, kernel:function, kernel@revision: a name from the Hub
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
_MAX_DEPTH = 6  # configs of vision language models nest their parts twice
_INPAINT_CHANNELS = 9
_COARSEST = 128  # pixels of one token of the coarsest model
_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def detect_repository(configs: Configs) -> Detection | None:
    """Detect a repository by its JSON files; None when they do not tell. Raises UnsupportedModel."""
    for file, config in configs.items():
        _refuse_code(file, config)
        check_numbers(file, config)
    if "model_index.json" in configs:
        return _pipeline(configs)
    if MODULAR_INDEX in configs:
        return _modular(configs)
    if "adapter_config.json" in configs:
        return peft_adapter(configs["adapter_config.json"])
    if "config.json" in configs:
        return component(configs["config.json"])
    return None


def _refuse_code(file: str, config: Mapping[str, object], depth: int = 0) -> None:
    """Raise UnsupportedModel if a config asks, at any depth, for code from elsewhere."""
    for key in _CODE_KEYS:
        if config.get(key):
            raise UnsupportedModel(
                f"{file} asks for remote code ({key}), which is never run here; use a model that diffusers has itself."
            )
    for key, value in config.items():
        if not isinstance(key, str):
            continue
        # transformers reads several spellings of it, and a dict of one for each part
        kernels = value.values() if isinstance(value, Mapping) else (value,)
        if "attn_implementation" in key and any(isinstance(name, str) and _KERNEL.search(name) for name in kernels):
            raise UnsupportedModel(
                f"{file} asks for a downloaded kernel ({key[:60]}), which is never run here; remove it."
            )
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            _refuse_code(file, value, depth + 1)


def _pipeline(configs: Configs) -> Detection:
    index = configs["model_index.json"]
    name = _class_of(index)
    evidence = [f"model_index.json: {name}"]
    row = by_class(name)
    if row is not None:
        row = _sibling(row, configs, evidence)
    pipeline, tasks = _tasks(row, name, configs, evidence)
    scheduler = configs.get("scheduler/scheduler_config.json", {})
    prediction = _text(scheduler.get("prediction_type"))
    quantization = _quantization(configs, evidence)
    return Detection(
        Kind.PIPELINE,
        "diffusers",
        architecture=row.id if row else None,
        pipeline=pipeline,
        tasks=tasks,
        prediction_type=prediction if prediction in _PREDICTIONS else None,
        scheduler=_scheduler(index),
        zero_snr=scheduler.get("rescale_betas_zero_snr") is True,
        native_size=_native_size(row, configs, index, evidence),
        size_grid=_size_grid(configs),
        controlnets=_controlnets(index, configs),
        evidence=tuple(evidence),
        quantization=quantization,
        parts=tuple(part for part, entry in index.items() if not part.startswith("_") and _is_there(entry)),
        part_classes=tuple(entry[-1] for entry in index.values() if _is_there(entry) and isinstance(entry[-1], str)),
    )


def _modular(configs: Configs) -> Detection:
    """Detect a modular repository. Raises UnsupportedModel for one that brings code, lacks parts or makes no images."""
    detection = _pipeline({**configs, "model_index.json": ordinary_index(configs)})
    evidence = (f"{MODULAR_INDEX}: {detection.pipeline}", *detection.evidence[1:])
    return replace(detection, format="modular", evidence=evidence)


def _class_of(index: Mapping[str, object]) -> str:
    """Return the name of the pipeline's class. Raises UnsupportedModel for code from elsewhere, and for other media."""
    name = index.get("_class_name")
    if not isinstance(name, str) or not _NAME.match(name) or "Pipeline" not in name:
        shown = name if isinstance(name, str) else "/".join(map(str, name)) if isinstance(name, list) else "nothing"
        raise UnsupportedModel(
            f"model_index.json names {shown[:80]!r} as its pipeline, which needs remote code and is never run here; "
            "use a model that diffusers has itself."
        )
    for part, entry in index.items():
        if not part.startswith("_"):
            _refuse_custom_part(part, entry)
    medium = named_medium(name)
    if medium is not None:
        raise UnsupportedModel(f"{name} {medium}, which this worker does not do; use an image or video model.")
    return name


def _is_there(entry: object) -> TypeGuard[list[object]]:
    return isinstance(entry, list) and any(name is not None for name in entry)


def _scheduler(index: Mapping[str, object]) -> str | None:
    entry = index.get("scheduler")
    return entry[-1] if _is_there(entry) and isinstance(entry[-1], str) else None


def _quantization(configs: Configs, evidence: list[str]) -> str | None:
    """Return the method in which a part of the repository is quantized: bitsandbytes_4bit, torchao, sdnq …"""
    for file, config in configs.items():
        method = quantization_method(config)
        if method is not None:
            evidence.append(f"{file}: quantized with {method}")
            return method
    return None


def _refuse_custom_part(part: str, entry: object) -> None:
    """Raise UnsupportedModel if a part's library is a path or a module of the repository: its code comes from there.

    A part is [library, class]. A list without any text is a setting of the pipeline, such as the text encoder's layers.
    """
    if not isinstance(entry, list) or not any(isinstance(name, str | list | dict) for name in entry):
        return
    names = [name for name in entry if name is not None]
    if len(entry) != 2 or not all(isinstance(name, str) and _NAME.match(name) for name in names):
        shown = "/".join(map(str, entry))[:80]
        raise UnsupportedModel(
            f"model_index.json takes its {part[:40]} from {shown!r}, which needs remote code and is never run here."
        )


def _sibling(row: Architecture, configs: Configs, evidence: list[str]) -> Architecture:
    for sibling in siblings(row):
        facts = sibling.repository.match(configs) if sibling.repository else None
        if facts is not None:
            evidence.extend(f"{fact}: {sibling.id}" for fact in facts)
            return sibling
    return row


def _tasks(row: Architecture | None, name: str, configs: Configs, evidence: list[str]) -> tuple[str, tuple[Task, ...]]:
    """Return the class that runs the repository, and its tasks.

    A family's main class stands for all of its tasks: the others take the same weights. A repository with another class
    is meant for that class's task only.
    """
    if row is None:
        return name, (named_task(name),)
    if name != next(iter(row.pipelines.values())):
        tasks = tuple(task for task, pipeline in row.pipelines.items() if pipeline == name)
        return name, tasks or (named_task(name),)
    inpaint = row.pipelines.get(Task.INPAINTING)
    if inpaint and configs.get("unet/config.json", {}).get("in_channels") == _INPAINT_CHANNELS:
        evidence.append(f"unet/config.json: {_INPAINT_CHANNELS} input channels")
        return inpaint, (Task.INPAINTING,)
    if row.inpaints_apart:
        return name, tuple(task for task in row.pipelines if task is not Task.INPAINTING)
    return name, tuple(row.pipelines)


def _native_size(
    row: Architecture | None, configs: Configs, index: Mapping[str, object], evidence: list[str]
) -> int | None:
    """Return the longer side in pixels: the denoiser's sample_size times the VAE's compression."""
    default = row.native_size if row else None
    if row is not None and row.fixed_size:
        return default
    part = next((part for part in DENOISERS if f"{part}/config.json" in configs), None)
    sample_size = configs[f"{part}/config.json"].get("sample_size") if part else None
    sizes = sample_size if isinstance(sample_size, list) else [sample_size]
    if not sizes or not all(type(size) is int and 0 < size <= 16_384 for size in sizes):
        return default
    factor = _compression(configs.get("vae/config.json")) if "vae" in index else 1
    if factor is None:
        return default
    evidence.append(f"{part}/config.json: sample_size {sample_size} x {factor}")
    return int(max(sizes) * factor)


def _controlnets(index: Mapping[str, object], configs: Configs) -> int:
    """Return the number of ControlNets in a class that holds several: they lie in `controlnet`, `controlnet_1` …"""
    entry = index.get("controlnet")
    if not _is_there(entry) or "MultiControlNet" not in str(entry[-1]):
        return 0
    return 1 + len(list(takewhile(lambda number: f"controlnet_{number}/config.json" in configs, range(1, 100))))


def _size_grid(configs: Configs) -> int | None:
    """Return the pixels that go into one token of the denoiser: the VAE's compression times the denoiser's patch."""
    compression = _compression(configs.get("vae/config.json"))
    part = next((part for part in DENOISERS if f"{part}/config.json" in configs), None)
    patch = configs[f"{part}/config.json"].get("patch_size", 1) if part else 1
    side = patch[-1] if isinstance(patch, list) and patch else patch
    grid = compression * side if compression and type(side) is int else 0
    return grid if 0 < grid <= _COARSEST else None


def _compression(vae: Mapping[str, object] | None) -> int | None:
    if vae is None:
        return None
    for key in ("spatial_compression_ratio", "scale_factor_spatial"):
        value = vae.get(key)
        if type(value) is int and 0 < value <= 256:
            return value
    steps, patch = vae.get("spatio_temporal_scaling"), vae.get("patch_size")
    if isinstance(steps, list) and type(patch) is int:  # LTX: its blocks shrink what was packed into patches
        return int(patch * 2 ** min(sum(map(bool, steps)), 8))
    for key, offset in (("block_out_channels", 1), ("encoder_block_out_channels", 1), ("temperal_downsample", 0)):
        value = vae.get(key)
        if isinstance(value, list) and 0 < len(value) <= 9:
            return int(2 ** (len(value) - offset))
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
