"""Which files of a diffusers repository a pipeline needs: one set of weights per component, and no pickles."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from worker.core.errors import InvalidRequest, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelSource

MODEL_INDEX = "model_index.json"
# What a pipeline may carry but the worker never loads: it is off by default and weighs more than some models.
SKIPPED_COMPONENTS = frozenset({"safety_checker"})
# The JSON files that say what a repository is; others may be of any size and shape.
OUTLINE_NAMES = re.compile(
    r"(model_index|modular_model_index|adapter_config|config)\.json|[^/]+/(config|scheduler_config)\.json"
)
MAX_OUTLINE_BYTES = 4_000_000
_SIDE_FILES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
# diffusion_pytorch_model[-00001-of-00002][.fp16][-00001-of-00002].safetensors
_WEIGHT = re.compile(r"^(?P<stem>[\w-]+?)(-\d{5}-of-\d{5})?(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.safetensors$")


@dataclass(frozen=True, slots=True)
class Selection:
    """Files to fetch, and the variant that they belong to where no plain weights exist."""

    names: tuple[str, ...]
    variant: str | None


def components(model_index: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The parts of a pipeline that are loaded, each with its class name."""
    for name, value in model_index.items():
        if name.startswith("_") or name in SKIPPED_COMPONENTS or not isinstance(value, list) or None in value:
            continue
        yield name, str(value[-1]) if value else ""


def pipeline_files(model_index: Mapping[str, object], names: Iterable[str], variant: str | None) -> Selection:
    """Choose the files of a diffusers repository. Raises UnsafeFormat when a component has pickles only."""
    listed = sorted(names)
    chosen = [name for name in listed if name == MODEL_INDEX]
    used: str | None = None
    for component, _ in components(model_index):
        # What lies deeper (onnx, openvino, checkpoints) is of no use to a pipeline.
        inside = [name for name in listed if name.startswith(f"{component}/") and name.count("/") == 1]
        weights = [name for name in inside if PurePosixPath(name).suffix == ".safetensors"]
        picked, picked_variant = _one_variant(weights, variant)
        used = used or picked_variant
        if not picked and any(PurePosixPath(name).suffix in _PICKLES for name in inside):
            raise UnsafeFormat(
                f"model component {component!r} exists as a pickle only, which can run code when read; "
                "use a repository or revision with safetensors weights.",
                field="model",
            )
        chosen += picked
        chosen += [name for name in inside if _is_side_file(name, picked_variant)]
    return Selection(tuple(dict.fromkeys(chosen)), used)


def single_file(names: Iterable[str], what: str) -> str:
    """The one safetensors file of a repository that is no pipeline. Raises UnsupportedModel naming the choices."""
    listed = sorted(names)
    found = [name for name in listed if name.endswith(".safetensors")]
    preferred = [name for name in found if PurePosixPath(name).name == "pytorch_lora_weights.safetensors"]
    if len(preferred) == 1 or len(found) == 1:
        return (preferred or found)[0]
    if found:
        raise UnsupportedModel(
            f"{what} has {len(found)} weight files; name one, as in {what}#{found[0]}.",
            field="model",
            details={"files": found[:20]},
        )
    if any(PurePosixPath(name).suffix in _PICKLES for name in listed):
        raise UnsafeFormat(
            f"{what} holds its weights as a pickle only, which can run code when read; use a repository with "
            "safetensors weights.",
            field="model",
        )
    raise UnsupportedModel(
        f"{what} has neither a model_index.json nor a safetensors file, so nothing here can load it.", field="model"
    )


def check_filename(source: ModelSource) -> None:
    """Refuse a file name that leaves its repository, or that is no safetensors file, before anything is looked up."""
    name = source.filename
    if name is None:
        return
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\0" in name or ".." in path.parts:
        raise InvalidRequest(f"{name[:80]!r} is no file name within {source.locator}; name one of its files.")
    if path.suffix in _PICKLES:
        raise UnsafeFormat(
            f"{name[:80]!r} is a pickle, which can run code when read; name a safetensors file.", field="model"
        )
    if path.suffix != ".safetensors":
        raise UnsupportedModel(f"{name[:80]!r} is not a safetensors file; name one that is.", field="model")


def is_shard(name: str) -> bool:
    """Whether a weight file is one of several that belong together."""
    return re.search(r"-\d{5}-of-\d{5}", name) is not None


def _one_variant(weights: list[str], wanted: str | None) -> tuple[list[str], str | None]:
    by_variant: dict[str | None, list[str]] = {}
    for name in weights:
        match = _WEIGHT.match(PurePosixPath(name).name)
        by_variant.setdefault(match["variant"] if match else None, []).append(name)
    for variant in (wanted, None, "fp16", *sorted(filter(None, by_variant))):
        if variant in by_variant:
            return by_variant[variant], variant
    return [], None


def _is_side_file(name: str, variant: str | None) -> bool:
    path = PurePosixPath(name)
    if path.suffix not in _SIDE_FILES:
        return False
    parts = path.name.split(".")
    if "index" not in parts:
        return True
    # Shard indexes: only the one of the chosen weights, and none of a pickle.
    rest = [part for part in parts[1:] if part not in {"safetensors", "index", "json"}]
    return "safetensors" in parts and rest == ([variant] if variant else [])
