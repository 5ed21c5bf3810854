"""Facts from the headers of weight files, read once per file: parameter counts of a model, the kind of a LoRA."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from worker.catalog.config_bounds import check_files
from worker.catalog.detector import detect_header
from worker.catalog.detectors.storage import held
from worker.catalog.formats.headers import read_header
from worker.catalog.lora_keys import read_keys, read_scaling, trigger_words
from worker.core.fingerprint import fingerprint
from worker.core.json_text import parse_bounded
from worker.core.lora import LoraKeys, Scaling
from worker.core.model import DENOISERS, Detection, ModelFiles, ModelSpec, TensorIndex, safetensors_files
from worker.core.precision import Reducible
from worker.store.local import read_json
from worker.store.selection import shard_count, split_of

_HASH_BLOCK = 2**22
_MAX_CONFIG_BYTES = 1_000_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What one reading of a component's weight file tells of the memory that it needs.

    `layers` is the number that the names of its tensors count. `held` are its weights, and its bytes that stay
    quantized in memory.
    """

    parameters: int
    layers: int
    held: tuple[int, int]
    reducible: Reducible


@dataclass(frozen=True, slots=True)
class LoraFile:
    """The kind of a LoRA file, its SHA-256, and the facts of its header."""

    detection: Detection
    sha256: str
    keys: LoraKeys
    scaling: Scaling
    trigger_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The kind of an adapter's file, its header and its SHA-256."""

    detection: Detection
    header: TensorIndex
    sha256: str


def count_parameters(root: Path) -> dict[str, int]:
    """Count each component's weights, from the headers alone. This is also a first check for damaged files."""
    if root.is_file():
        return {"model": _facts(root).parameters}
    if (root / "config.json").is_file():  # one component alone
        groups = _sets(safetensors_files(root))
        return {"model": max((sum(_facts(path).parameters for path in group) for group in groups), default=0)}
    counts: dict[str, int] = {}
    for component in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        groups = _sets(safetensors_files(component))
        # Variants and splits lie side by side; the largest stands for the component.
        sums = [sum(_facts(path, component.name).parameters for path in group) for group in groups]
        counts[component.name] = max(sums, default=0)
        _check_described(component, counts[component.name], [path for group in groups for path in group])
    return {name: count for name, count in counts.items() if count}


def _check_described(component: Path, parameters: int, files: Collection[Path]) -> None:
    """Raise CorruptFile if the config in `component` describes far more than its files hold."""
    config = component / "config.json"
    if files and config.is_file():
        layers = max(_facts(path, component.name).layers for path in files)
        check_files(f"{component.name}/{config.name}", read_json(config), parameters, layers)


def weigh(files: ModelFiles, missing: Collection[str] | None) -> ModelFiles:
    """Return the files with what `measure` and `count_reducible` say, from memory as long as none of them changed.

    Every job asks for it, of a model that is resident too.
    """
    places = [files.root, *files.parts.values(), *([files.base] if files.base else [])]
    parts = tuple(sorted(files.parts.items()))
    wanted = None if missing is None else tuple(missing)
    facts = _weighed(files.root, files.base, parts, wanted, tuple(_states(place) for place in places))
    return replace(files, parameters=dict(facts[0]), packed=dict(facts[1]), reducible=dict(facts[2]))


@lru_cache(maxsize=256)
def _weighed(
    root: Path,
    base: Path | None,
    parts: tuple[tuple[str, Path], ...],
    missing: tuple[str, ...] | None,
    states: tuple[tuple[tuple[str, int, int], ...], ...],
) -> tuple[dict[str, int], dict[str, int], dict[str, Reducible]]:
    files = ModelFiles(root, 0, base=base, parts=dict(parts))
    parameters, packed = measure(files, missing)
    return parameters, packed, count_reducible(replace(files, parameters=parameters))


def _states(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of a file, or of each file in a folder and in the folders in it."""
    paths = [place] if place.is_file() else [*sorted(place.glob("*.*")), *sorted(place.glob("*/*.*"))]
    states = [(str(path.relative_to(place)), path.stat()) for path in paths if path.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def measure(files: ModelFiles, missing: Collection[str] | None) -> tuple[dict[str, int], dict[str, int]]:
    """Return a model's weights per component, and the bytes of each that stay quantized in memory.

    Of `files.base` only `missing` components count; None is all but its denoiser, which the file itself is.
    """
    counts = count_parameters(files.root)
    packed = _packed(files.root)
    counts |= dict.fromkeys(packed, 0)
    if files.root.is_file():
        counts["model"], packed["model"] = _facts(files.root).held
    if files.base is not None:
        for name, count in count_parameters(files.base).items():
            if name in missing if missing is not None else name not in DENOISERS:
                counts[name] = count
    for name, path in files.parts.items():
        counts[name] = count_parameters(path).get(name, 0) or sum(count_parameters(path).values())
        if name in DENOISERS and path.is_file():
            counts[name], packed[name] = _facts(path).held
    return {name: count for name, count in counts.items() if count}, {
        name: size for name, size in packed.items() if size
    }


def count_reducible(files: ModelFiles) -> dict[str, Reducible]:
    """Count the numbers of each component in weights that a precision can make smaller, from the headers alone."""
    counts = {}
    for name, most in files.parameters.items():
        place = _place_of(name, files)
        groups = [[place]] if place.is_file() else _sets(safetensors_files(place))
        # Of the sets that lie side by side the one that was counted.
        of_count = [group for group in groups if sum(_facts(path, name).parameters for path in group) == most]
        for group in of_count[:1]:
            counts[name] = sum((_facts(path, name).reducible for path in group), Reducible())
    return counts


def _place_of(name: str, files: ModelFiles) -> Path:
    """Return the file or folder that has a component's weights."""
    part = files.parts.get(name)
    if part is not None:
        return part / name if (part / name).is_dir() else part
    places = [files.root / name, *([files.base / name] if files.base else [])]
    return next((path for path in places if path.is_dir()), files.root)


def identity(spec: ModelSpec, files: ModelFiles) -> str:
    """Return a digest of which weights these are, without reading them: their source, and files as they lie here."""
    places = [files.root, *(path for _, path in sorted(files.parts.items())), *([files.base] if files.base else [])]
    listed = [_states(place) for place in places]
    return fingerprint((spec.source.reference, files.revision, files.variant, sorted(files.parts), listed))


def _packed(root: Path) -> dict[str, int]:
    """Return the bytes of a repository's components that stay as stored: those whose config says quantized."""
    packed = {}
    for config in root.glob("*/config.json"):
        if b'"quantization_config"' in config.read_bytes():
            sizes = [sum(path.stat().st_size for path in group) for group in _sets(safetensors_files(config.parent))]
            packed[config.parent.name] = max(sizes, default=0)
    return packed


def examine_adapter(path: Path, sha256: str | None = None) -> AdapterFile:
    """Read an adapter other than a LoRA; the file is read as a whole if its digest is not known.

    Raises CorruptFile, UnsafeFormat … for an unreadable file.
    """
    return _unchanged(partial(_examine_adapter, sha256), path)


def examine_lora(path: Path, sha256: str | None = None) -> LoraFile:
    """Read a LoRA file's kind and header; the file is read as a whole if its digest is not known.

    Raises CorruptFile, UnsafeFormat … for an unreadable file.
    """
    return _unchanged(partial(_examine_lora, sha256), path)


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as hex, computed once."""
    return _unchanged(_digest, path)


def _unchanged(read: Callable[[str, int, int], T], path: Path) -> T:
    """Return `read`'s result for this file, from memory as long as its size and time stay."""
    stat = path.stat()
    return read(str(path), stat.st_size, stat.st_mtime_ns)


def _facts(path: Path, component: str = "model") -> WeightFacts:
    return _unchanged(partial(_read_facts, component), path)


@lru_cache(maxsize=4_096)
def _read_facts(component: str, path: str, size: int, mtime_ns: int) -> WeightFacts:
    header = read_header(Path(path))
    parts = {part for name in header.tensors for part in name.split(".")}
    return WeightFacts(
        header.parameters,
        1 + max((int(part[:9]) for part in parts if part.isdecimal()), default=-1),
        held(header),
        Reducible.of(component, {name: shape for name, (_, shape) in header.tensors.items()}),
    )


@lru_cache(maxsize=64)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    return _sha256(Path(path))


@lru_cache(maxsize=64)
def _examine_lora(sha256: str | None, path: str, size: int, mtime_ns: int) -> LoraFile:
    file = Path(path)
    header = read_header(file)
    keys = read_keys({name: shape for name, (_, shape) in header.tensors.items()})
    return LoraFile(
        detect_header(header, file.name),
        sha256 or file_sha256(file),
        keys,
        read_scaling(header.metadata, _adapter_config(file)),
        trigger_words(header.metadata, keys.embeddings),
    )


@lru_cache(maxsize=64)
def _examine_adapter(sha256: str | None, path: str, size: int, mtime_ns: int) -> AdapterFile:
    file = Path(path)
    header = read_header(file)
    return AdapterFile(detect_header(header, file.name), header, sha256 or file_sha256(file))


def _adapter_config(path: Path) -> Mapping[str, JsonValue] | None:
    """Read peft's own file beside a LoRA, which has the scale that the tensors lack; None without one."""
    config = path.with_name("adapter_config.json")
    try:
        value = parse_bounded(config.read_bytes()) if config.stat().st_size <= _MAX_CONFIG_BYTES else None
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sets(paths: list[Path]) -> list[list[Path]]:
    """Return the sets of weights in a folder: those of one variant, as whole files or as the shards of one split."""
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        parts = path.name.split(".")
        split = split_of(path.name) if shard_count(path.name) else ()
        groups.setdefault((parts[1] if len(parts) > 2 else "", *split), []).append(path)
    return list(groups.values())
