"""Layouts of a component's tensor names: diffusers' own, or the one that its authors publish.

All names decide. A file is in diffusers' layout if it has every tensor of the model under its name there; layouts share
most of their names, so that a share of them says nothing. Otherwise the converters of its class read it, diffusers' own
and ours. A file is damaged only where it lacks a tensor and has none that the class does not know.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from worker.core.errors import CorruptFile, UnsupportedModel, WorkerError
from worker.engine import conversion
from worker.engine.devices import is_out_of_memory
from worker.engine.quantization import Weights
from worker.engine.sizes import shape_of, sizes_of
from worker.engine.skeletons import Skeletons

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MARKERS = ("__", "edm_")  # tensors of a file that say something of it and are no weights
# A converter stops at the first name that it misses. So many are stood in for before the file is of another layout.
_FEW = 24
# Divisible by two, three and four, as converters split tensors.
_STAND_IN = 12
# Names before which diffusers' converter expects a prefix.
_PREFIXES = {
    "UNet2DConditionModel": "model.diffusion_model.",
    "AutoencoderKLLTXVideo": "vae.",
    "CosmosTransformer3DModel": "net.",
}

Converter = Callable[[Weights, Mapping[str, Any]], Weights]


@dataclass(frozen=True, slots=True)
class Fit:
    """A component's tensors in diffusers' names, and the config values that they show to differ from its config."""

    weights: Weights
    changes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of a file, held against the model: its tensors in diffusers' names."""

    weights: Weights
    changes: dict[str, Any]
    wanted: Mapping[str, tuple[int, ...]]
    lost: tuple[str, ...]  # original names that its converter missed

    @property
    def missing(self) -> list[str]:
        return [*self.lost, *(name for name in self.wanted if name not in self.weights)]

    @property
    def unexpected(self) -> list[str]:
        return [name for name in self.weights if name not in self.wanted]


def fit(
    part: str, cls: type[Any], weights: Weights, config: Mapping[str, Any], skeletons: Skeletons | None = None
) -> Fit:
    """Return the tensors of a `cls` in exactly its names. `config` is of its family, or of the repository behind it.

    `skeletons` has those that were made before. Raises CorruptFile for a file that lacks tensors, UnsupportedModel for
    one in a layout that nothing here reads, or of other sizes than its config says.
    """
    told = conversion.latent_statistics(cls.__name__, weights)
    readings: list[_Reading] = []
    skeletons = skeletons or Skeletons()
    for named, lost in _readings(cls.__name__, weights, config):
        reading = _held_against(cls, named, lost, config, skeletons)
        if not reading.missing:
            _check(part, cls, reading)
            return Fit({name: reading.weights[name] for name in reading.wanted}, told | reading.changes)
        readings.append(reading)
        if not reading.unexpected:
            break  # the names are diffusers' own, and no converter adds to them
    raise _misfit(part, cls, readings)


def _held_against(
    cls: type[Any], named: Weights, lost: tuple[str, ...], config: Mapping[str, Any], skeletons: Skeletons
) -> _Reading:
    changes = sizes_of(cls.__name__, named, config)
    wanted = skeletons.shapes(cls, {**config, **changes})
    ignored = [re.compile(pattern) for pattern in cls._keys_to_ignore_on_load_unexpected or ()]
    kept = {
        name: tensor
        for name, tensor in named.items()
        if name in wanted or not (name.startswith(_MARKERS) or any(pattern.search(name) for pattern in ignored))
    }
    return _Reading(kept, changes, wanted, lost)


def _readings(
    class_name: str, weights: Weights, config: Mapping[str, Any]
) -> Iterator[tuple[Weights, tuple[str, ...]]]:
    """Yield the file's tensors in diffusers' names: as they are, then as each converter reads them."""
    yield dict(weights), ()
    for convert, prefix in _converters(class_name, weights):
        named = {prefix + name: tensor for name, tensor in weights.items()}
        reading = _converted(convert, named, config)
        if reading is not None:
            yield reading


def _converters(class_name: str, weights: Weights) -> Iterator[tuple[Converter, str]]:
    """Yield the converters for a class, each with the prefix that it expects."""
    if any(".proj_attn." in name for name in weights):
        yield (lambda named, config: conversion.attention_names(named)), ""
    if class_name in conversion.CONVERTERS:
        own = conversion.CONVERTERS[class_name]
        yield (lambda named, config: own(named)), ""
    elif class_name in SINGLE_FILE_LOADABLE_CLASSES:
        theirs = SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"]
        yield (lambda named, config: theirs(checkpoint=named, config=dict(config))), _PREFIXES.get(class_name, "")


def _converted(
    convert: Converter, weights: Weights, config: Mapping[str, Any]
) -> tuple[Weights, tuple[str, ...]] | None:
    """Return what `convert` makes of the file, with the names that it missed; None if it cannot read the file.

    A few missing tensors are stood in for, so that the others are still held against the model.
    """
    lost: list[str] = []
    while len(lost) < _FEW:
        given = weights | {name: _stand_in(name, weights) for name in lost}
        try:
            named = convert(dict(given), config)
        except KeyError as error:
            name = str(error.args[0]) if error.args else ""
            if not name or name in given:
                return None
            lost.append(name)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None  # a converter that stumbles was not made for this file
        else:
            return {name: tensor for name, tensor in named.items() if tensor is not None}, tuple(lost)
    return None


def _stand_in(name: str, weights: Weights) -> torch.Tensor:
    """Return a tensor without memory in the place of a missing one: like that of another block where there is one."""
    pattern = _pattern(name)
    for other, tensor in weights.items():
        if _pattern(other) == pattern:
            return torch.empty(tensor.shape, device="meta")
    return torch.empty(_STAND_IN, device="meta")


def _check(part: str, cls: type[Any], reading: _Reading) -> None:
    """Check a reading that has all tensors: it may have further ones, or other shapes. Raises UnsupportedModel."""
    further = [name for name in reading.unexpected if reading.weights[name].ndim > 1]
    if further:
        raise UnsupportedModel(
            f"The {part} in the file has {len(further)} tensors ({further[0][:80]}, say) that a {cls.__name__} as its "
            "base describes it does not have; name the diffusers repository that it was made from as base in "
            "models.yaml.",
            field="model",
        )
    for name, shape in reading.wanted.items():
        held = shape_of(reading.weights[name])
        if held != shape:
            raise UnsupportedModel(
                f"{name[:80]} of the {part} is {held} in the file and {shape} as its base describes it; name the "
                "diffusers repository that it was made from as base in models.yaml.",
                field="model",
            )


def _misfit(part: str, cls: type[Any], readings: list[_Reading]) -> WorkerError:
    """Return the error for a file that no reading completes: of the reading that misses least."""
    best = min(readings, key=lambda reading: len(reading.missing))
    missing, unexpected = best.missing, best.unexpected
    if 2 * len(missing) > len(best.wanted):
        return UnsupportedModel(
            f"The {part} in the file is in a layout of a {cls.__name__} that is not read here, or of another kind "
            f"({(unexpected or missing)[0][:80]}, say); use the model's diffusers repository.",
            field="model",
        )
    present = {_pattern(name) for name in best.weights}
    if unexpected and not any(_pattern(name) in present for name in missing):
        return UnsupportedModel(
            f"The {part} in the file is of another version than its base: it has {unexpected[0][:80]} and lacks "
            f"{missing[0][:80]}; name the diffusers repository that it was made from as base in models.yaml.",
            field="model",
        )
    return CorruptFile(
        f"The file lacks {len(missing)} tensors of its {part} ({missing[0][:80]}, say); it is damaged: fetch it again.",
        field="model",
    )


def _pattern(name: str) -> str:
    """Return a name without the numbers of its blocks."""
    return _NUMBER.sub("#", name)
