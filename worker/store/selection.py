"""The files of a repository that are its model: one set of weights per component, and pickles only where allowed."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from worker.core.errors import InvalidRequest, UnsafeFormat, UnsupportedModel
from worker.core.model import NEVER_LOADED, PICKLES, ModelSource

MODEL_INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# The JSON files that describe a repository; others may be of any size and shape.
OUTLINE_NAMES = re.compile(
    r"(model_index|modular_model_index|adapter_config|config)\.json|[^/]+/(config|scheduler_config)\.json"
)
MAX_OUTLINE_BYTES = 4_000_000
_SIDE_FILES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_PICKLES = PICKLES | {".pkl"}
_WEIGHTS = frozenset({".safetensors", ".gguf"})
# diffusion_pytorch_model[-00001-of-00002][.fp16][-00001-of-00002].safetensors
_WEIGHT = re.compile(
    r"^(?P<stem>[\w-]+?)(-\d{5}-of-\d{5})?(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.(safetensors|bin)$"
)
# The names that save_pretrained gives to the weights of one component.
_COMPONENT_STEMS = frozenset({"diffusion_pytorch_model", "model", "pytorch_model"})
_LORA_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Selection:
    """Files to fetch, the variant that they belong to where no plain weights exist, and the file that is the model.

    Without `main` the folder is the model.
    """

    names: tuple[str, ...]
    variant: str | None
    main: str | None = None


def components(model_index: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a pipeline that are loaded, each with its class name."""
    for name, value in model_index.items():
        if name.startswith("_") or name in NEVER_LOADED or not isinstance(value, list) or len(value) != 2:
            continue
        if all(isinstance(item, str) for item in value):  # numbers are a setting, null a part that was left out
            yield name, value[1]


def pipeline_files(
    model_index: Mapping[str, object],
    names: Iterable[str],
    variant: str | None,
    *,
    wants: Callable[[str], bool] = lambda component: True,
    allow_pickles: bool = False,
) -> Selection:
    """Choose the files of a diffusers repository. Raises UnsafeFormat when a component has pickles only.

    A component that is not wanted is described and not fetched: its config comes along, its weights do not.
    """
    files = sorted(names)
    chosen = [name for name in files if name in {MODEL_INDEX, MODULAR_INDEX}]
    used: str | None = None
    for component, _ in components(model_index):
        # Deeper files (onnx, openvino, checkpoints) are of no use to a pipeline.
        inside = [name for name in files if name.startswith(f"{component}/") and name.count("/") == 1]
        if not wants(component):
            chosen += [name for name in inside if PurePosixPath(name).name == CONFIG]
            continue
        names_of, picked_variant = _inside(component, inside, variant, allow_pickles=allow_pickles)
        used = used or picked_variant
        chosen += names_of
    return Selection(tuple(dict.fromkeys(chosen)), used)


def _inside(
    component: str, inside: list[str], variant: str | None, *, allow_pickles: bool
) -> tuple[list[str], str | None]:
    """Return the weights of a component's folder with their side files, and the variant of the weights."""
    weights = _with_suffix(inside, ".safetensors") or (_with_suffix(inside, ".bin") if allow_pickles else [])
    picked, used = _one_variant(weights, variant)
    if not picked and any(is_pickle(name) for name in inside):
        raise UnsafeFormat(
            f"model component {component!r} exists as a pickle only, which can run code when read; "
            "use a repository or revision with safetensors weights.",
            field="model",
        )
    return [*picked, *(name for name in inside if _is_side_file(name, picked, used))], used


def component_files(
    config: Mapping[str, object], names: Iterable[str], variant: str | None, *, allow_pickles: bool = False
) -> Selection | None:
    """Choose the files of a repository that is one component; None if it is none by its config and file names."""
    if not isinstance(config.get("_class_name") or config.get("model_type"), str):
        return None
    files = sorted(name for name in names if "/" not in name)
    candidates = [name for name in files if (match := _WEIGHT.match(name)) and match["stem"] in _COMPONENT_STEMS]
    weights = _with_suffix(candidates, ".safetensors") or (_with_suffix(candidates, ".bin") if allow_pickles else [])
    picked, used = _one_variant(weights, variant)
    if not picked or _LORA_NAME in files:
        return None
    sides = [name for name in files if _is_side_file(name, picked, used)]
    return Selection((*picked, *sides), used)


def file_selection(name: str, names: Collection[str]) -> Selection:
    """Return one weight file, with the config of its adapter if one lies beside it."""
    beside = str(PurePosixPath(name).with_name(ADAPTER_CONFIG))
    return Selection((name, beside) if beside in names else (name,), None, name)


def single_file(names: Iterable[str], what: str, *, allow_pickles: bool = False) -> str:
    """Return the one weight file of a repository that is no pipeline. Raises UnsupportedModel naming the choices."""
    files = sorted(names)
    pickles = [name for name in files if PurePosixPath(name).suffix in _PICKLES]
    weights = [name for name in files if PurePosixPath(name).suffix in _WEIGHTS] or (pickles if allow_pickles else [])
    preferred = [name for name in weights if PurePosixPath(name).name == _LORA_NAME]
    if len(preferred) == 1 or len(weights) == 1:
        return (preferred or weights)[0]
    if weights:
        raise UnsupportedModel(
            f"{what} has {len(weights)} weight files; name one, as in {what}#{weights[0]}.",
            field="model",
            details={"files": weights[:20]},
        )
    if pickles:
        raise UnsafeFormat(
            f"{what} holds its weights as a pickle only, which can run code when read; use a repository with "
            "safetensors weights.",
            field="model",
        )
    raise UnsupportedModel(
        f"{what} has neither a model_index.json nor a safetensors file, so nothing here can load it.", field="model"
    )


def check_filename(source: ModelSource, *, allow_pickles: bool = False) -> None:
    """Refuse a name that leaves its repository, or that is no weight file, before anything is looked up."""
    for text in filter(None, (source.filename, source.subfolder)):
        path = PurePosixPath(text)
        if path.is_absolute() or "\\" in text or "\0" in text or ".." in path.parts:
            raise InvalidRequest(
                f"{text[:80]!r} is no name within {source.locator}; name one of its files.", field="model"
            )
    name = source.filename
    if name is None:
        return
    path = PurePosixPath(name)
    if path.suffix in _PICKLES:
        if allow_pickles:
            return
        raise UnsafeFormat(
            f"{name[:80]!r} is a pickle, which can run code when read; name a safetensors file.", field="model"
        )
    if path.suffix not in _WEIGHTS:
        raise UnsupportedModel(
            f"{name[:80]!r} is neither a safetensors nor a GGUF file; name one that is.", field="model"
        )


def is_weights(name: str) -> bool:
    """True if a file holds weights, by its name."""
    return PurePosixPath(name).suffix in _WEIGHTS | _PICKLES


def is_pickle(name: str) -> bool:
    """True if a file is a pickle, by its name."""
    return PurePosixPath(name).suffix in _PICKLES


def is_shard(name: str) -> bool:
    """True if a weight file is one of several that belong together, by its name."""
    return re.search(r"-\d{5}-of-\d{5}", name) is not None


def _one_variant(weights: list[str], preferred: str | None) -> tuple[list[str], str | None]:
    by_variant: dict[str | None, list[str]] = {}
    for name in weights:
        match = _WEIGHT.match(PurePosixPath(name).name)
        by_variant.setdefault(match["variant"] if match else None, []).append(name)
    for variant in (preferred, None, "fp16", *sorted(filter(None, by_variant))):
        if variant in by_variant:
            return by_variant[variant], variant
    return [], None


def _is_side_file(name: str, weights: list[str], variant: str | None) -> bool:
    path = PurePosixPath(name)
    if path.suffix not in _SIDE_FILES:
        return False
    parts = path.name.split(".")
    if "index" not in parts:
        return True
    # Shard indexes: only the one of the chosen weights.
    container = PurePosixPath(weights[0]).suffix[1:] if weights else "safetensors"
    labels = [label for label in parts[1:] if label not in {container, "index", "json"}]
    return container in parts and labels == ([variant] if variant else [])


def _with_suffix(names: list[str], suffix: str) -> list[str]:
    return [name for name in names if PurePosixPath(name).suffix == suffix]
