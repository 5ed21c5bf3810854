"""The files of a repository that are its model: one set of weights per component, and pickles only where allowed."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from worker.core.errors import InvalidRequest, UnsafeFormat, UnsupportedModel
from worker.core.model import NEVER_LOADED, PICKLES, SAFETENSORS, ModelSource

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
_WEIGHTS = SAFETENSORS | {".gguf"}
_BINARY = frozenset({".bin"})  # the one kind of pickle that a component's folder may have
# diffusion_pytorch_model[-00001-of-00002][.fp16][-00001-of-00002].safetensors
_WEIGHT = re.compile(
    r"^(?P<stem>[\w-]+?)(-\d{5}-of-\d{5})?(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.(safetensors|sft|bin)$",
    re.IGNORECASE,
)
# The names that save_pretrained gives to the weights of one component.
_COMPONENT_STEMS = frozenset({"diffusion_pytorch_model", "model", "pytorch_model"})
_LORA_NAME = "pytorch_lora_weights.safetensors"
_PEFT_NAME = "adapter_model.safetensors"
_MAX_NAMES = 5  # in a sentence


@dataclass(frozen=True, slots=True)
class Selection:
    """Files to fetch, the variant that they belong to where no plain weights exist, and the file that is the model.

    Without `main` the folder is the model.
    """

    names: tuple[str, ...]
    variant: str | None
    main: str | None = None


ReadIndex = Callable[[str], Mapping[str, object]]


def is_hidden(name: str) -> bool:
    """True for a file that is none of a model's: `._model.safetensors` of a Mac, or one in `.git`."""
    return any(segment.startswith(".") or segment == "__MACOSX" for segment in name.split("/"))


def index_among(names: Collection[str]) -> str | None:
    """Return the file that lists a pipeline's parts, ordinary before modular; None where there is none."""
    return next((name for name in (MODEL_INDEX, MODULAR_INDEX) if name in names), None)


def components(model_index: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a pipeline that are loaded, each with its class name."""
    for name, value in model_index.items():
        if name.startswith("_") or name in NEVER_LOADED or not isinstance(value, list) or len(value) not in (2, 3):
            continue
        if all(isinstance(item, str) for item in value[:2]):  # numbers are a setting, null a part that was left out
            yield name, value[1]


def folders_of(component: str, cls: str, names: Iterable[str]) -> list[str]:
    """Return the folders of a component: one, but several of a class that holds many ControlNets (`controlnet_1`)."""
    if "Multi" not in cls or "ControlNet" not in cls:
        return [component]
    more = {folder for name in names if re.fullmatch(rf"{component}_\d{{1,2}}", folder := name.partition("/")[0])}
    return [component, *sorted(more)]


def pipeline_files(
    model_index: Mapping[str, object],
    names: Iterable[str],
    variant: str | None,
    *,
    wants: Callable[[str], bool] = lambda component: True,
    allow_pickles: bool = False,
    read_index: ReadIndex = lambda name: {},
) -> Selection:
    """Choose the files of a diffusers repository. Raises UnsafeFormat when a component has pickles only.

    A component that is not wanted is described and not fetched: its config comes along, its weights do not. Where a
    component has its weights twice, one set is chosen; `read_index` reads the index of shards that says which.
    """
    files = sorted(name for name in names if not is_hidden(name))
    chosen = [name for name in files if name in {MODEL_INDEX, MODULAR_INDEX}]
    used: str | None = None
    folders = [(part, folder) for part, cls in components(model_index) for folder in folders_of(part, cls, files)]
    for component, folder in folders:
        # Deeper files (onnx, openvino, checkpoints) are of no use to a pipeline.
        inside = [name for name in files if name.startswith(f"{folder}/") and name.count("/") == 1]
        if not wants(component):
            chosen += [name for name in inside if PurePosixPath(name).name == CONFIG]
            continue
        names_of, picked_variant = _inside(component, inside, variant, allow_pickles, read_index)
        used = used or picked_variant
        chosen += names_of
    return Selection(tuple(dict.fromkeys(chosen)), used)


def _inside(
    component: str, inside: list[str], variant: str | None, allow_pickles: bool, read_index: ReadIndex
) -> tuple[list[str], str | None]:
    """Return the weights of a component's folder with their side files, and the variant of the weights."""
    weights = _with_suffix(inside, SAFETENSORS) or (_with_suffix(inside, _BINARY) if allow_pickles else [])
    picked, used = _one_variant(weights, variant)
    sides = [name for name in inside if _is_side_file(name, picked, used)]
    if not picked and any(is_pickle(name) for name in inside):
        raise UnsafeFormat(
            f"model component {component!r} exists as a pickle only, which can run code when read; "
            "use a repository or revision with safetensors weights.",
            field="model",
        )
    return _one_set(picked, sides, read_index), used


def component_files(
    config: Mapping[str, object],
    names: Iterable[str],
    variant: str | None,
    *,
    allow_pickles: bool = False,
    read_index: ReadIndex = lambda name: {},
) -> Selection | None:
    """Choose the files of a repository that is one component; None if it is none by its config and file names."""
    if not isinstance(config.get("_class_name") or config.get("model_type"), str):
        return None
    files = sorted(name for name in names if "/" not in name and not is_hidden(name))
    candidates = [name for name in files if (match := _WEIGHT.match(name)) and match["stem"] in _COMPONENT_STEMS]
    weights = _with_suffix(candidates, SAFETENSORS) or (_with_suffix(candidates, _BINARY) if allow_pickles else [])
    picked, used = _one_variant(weights, variant)
    if not picked or _LORA_NAME in files:
        return None
    sides = [name for name in files if _is_side_file(name, picked, used)]
    return Selection(tuple(_one_set(picked, sides, read_index)), used)


def file_selection(name: str, names: Collection[str]) -> Selection:
    """Return one weight file, with the config of its adapter if one lies beside it."""
    beside = str(PurePosixPath(name).with_name(ADAPTER_CONFIG))
    return Selection((name, beside) if beside in names else (name,), None, name)


def single_file(names: Iterable[str], what: str, *, allow_pickles: bool = False) -> str:
    """Return the one weight file of a repository that is no pipeline. Raises UnsupportedModel naming the choices."""
    files = sorted(name for name in names if not is_hidden(name))
    pickles = _with_suffix(files, _PICKLES)
    weights = _with_suffix(files, _WEIGHTS) or (pickles if allow_pickles else [])
    preferred = [name for name in weights if PurePosixPath(name).name in (_LORA_NAME, _PEFT_NAME)]
    if len(preferred) == 1 or len(weights) == 1:
        return (preferred or weights)[0]
    if weights:
        listed = ", ".join(weights[:_MAX_NAMES]) + (", …" if len(weights) > _MAX_NAMES else "")
        raise UnsupportedModel(
            f"{what} has {len(weights)} weight files ({listed}); name one, as in {what}#{weights[0]}.",
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
    if is_hidden(name):
        raise UnsupportedModel(
            f"{name[:80]!r} is a hidden file, such as a Mac leaves beside each, and holds no weights; name the file "
            "without the dots.",
            field="model",
        )
    if is_pickle(name):
        if allow_pickles:
            return
        raise UnsafeFormat(
            f"{name[:80]!r} is a pickle, which can run code when read; name a safetensors file.", field="model"
        )
    if _suffix(name) not in _WEIGHTS:
        raise UnsupportedModel(
            f"{name[:80]!r} is neither a safetensors nor a GGUF file; name one that is.", field="model"
        )


def is_weights(name: str) -> bool:
    """True if a file holds weights, by its name."""
    return _suffix(name) in _WEIGHTS | _PICKLES


def is_pickle(name: str) -> bool:
    """True if a file is a pickle, by its name."""
    return _suffix(name) in _PICKLES


def split_of(name: str) -> tuple[str, ...]:
    """Return what all shards of one set of weights have in common, in their names; another text for every other."""
    return tuple(re.split(r"-\d{5}(?=-of-\d{5})", PurePosixPath(name).name))


def shard_count(name: str) -> int | None:
    """Return how many shards a weight file is one of, by its name; None for a whole file."""
    match = re.search(r"-\d{5}-of-(\d{5})", PurePosixPath(name).name)
    return int(match[1]) if match else None


def is_index(name: str) -> bool:
    """True if a file is an index of shards, by its name."""
    return name.lower().endswith(".json") and "index" in PurePosixPath(name).name.split(".")


def listed_shards(index: Mapping[str, object]) -> frozenset[str]:
    """Return the files that an index of shards names."""
    weight_map = index.get("weight_map")
    return frozenset(map(str, weight_map.values())) if isinstance(weight_map, Mapping) else frozenset()


def _one_set(weights: list[str], sides: list[str], read_index: ReadIndex) -> list[str]:
    """Return one set of weights with its side files, of those that a folder has: a whole file before any shards."""
    weights = [name for name in weights if _stem(name) in _COMPONENT_STEMS] or weights
    without_indexes = [name for name in sides if not is_index(name)]
    whole = [name for name in weights if shard_count(name) is None]
    if whole:  # an index beside it would have its shards loaded
        return [*whole, *without_indexes]
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in weights:
        sets.setdefault(split_of(name), []).append(name)
    if len(sets) > 1:
        picked, index = _one_split([*sets.values()], [*filter(is_index, sides)], read_index)
        return [*picked, *index, *without_indexes]
    return [*weights, *sides]


def _one_split(splits: list[list[str]], indexes: list[str], read_index: ReadIndex) -> tuple[list[str], list[str]]:
    """Return the shards that an index names, with that index; else those of the fewest files, with all indexes."""
    for index in indexes:
        listed = listed_shards(read_index(index))
        for files in splits:
            if {PurePosixPath(name).name for name in files} == listed:
                return files, [index]
    complete = [files for files in splits if len(files) == shard_count(files[0])]
    return min(complete or splits, key=len), indexes


def _stem(name: str) -> str:
    match = _WEIGHT.match(PurePosixPath(name).name)
    return match["stem"] if match else ""


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


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
    if path.suffix.lower() not in _SIDE_FILES:
        return False
    parts = path.name.split(".")
    if "index" not in parts:
        return True
    # Shard indexes: only the one of the chosen weights.
    container = "bin" if weights and _suffix(weights[0]) in _BINARY else "safetensors"
    labels = [label for label in parts[1:] if label not in {container, "index", "json"}]
    return container in parts and labels == ([variant] if variant else [])


def _with_suffix(names: list[str], suffixes: Collection[str]) -> list[str]:
    return [name for name in names if _suffix(name) in suffixes]
