"""What weight files say in their headers, read once per file: parameter counts of a model, the layers of a LoRA."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from worker.catalog.adapters import lora_modules
from worker.catalog.detector import detect_header
from worker.catalog.headers import read_header
from worker.core.model import Detection

_HASH_BLOCK = 2**22
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file's kind, the layers that it changes (none if it is no plain LoRA), and its SHA-256."""

    detection: Detection
    modules: tuple[str, ...]
    sha256: str


def count_parameters(root: Path) -> dict[str, int]:
    """How many weights each component has, from the headers alone; also a first check that no file is damaged."""
    if root.is_file():
        return {"model": _unchanged(_count, root)}
    counts: dict[str, int] = {}
    for component in sorted(path for path in root.iterdir() if path.is_dir()):
        groups = _by_variant(sorted(component.glob("*.safetensors")))
        # Variants lie side by side; the largest stands for the component.
        counts[component.name] = max((sum(_unchanged(_count, path) for path in group) for group in groups), default=0)
    return {name: count for name, count in counts.items() if count}


def examine_lora(path: Path) -> LoraFile:
    """What a LoRA file is. Raises CorruptFile, UnsafeFormat … for what cannot be read."""
    return _unchanged(_examine_lora, path)


def _unchanged(read: Callable[[str, int, int], T], path: Path) -> T:
    """`read`'s answer for this file, from memory as long as its size and time stay."""
    stat = path.stat()
    return read(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4_096)
def _count(path: str, size: int, mtime_ns: int) -> int:
    return read_header(Path(path)).parameters


@lru_cache(maxsize=512)
def _examine_lora(path: str, size: int, mtime_ns: int) -> LoraFile:
    file = Path(path)
    header = read_header(file)
    modules = sorted(f"{part}.{name}" for part, names in lora_modules(header).items() for name in names)
    return LoraFile(detect_header(header, file.name), tuple(modules), _sha256(file))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _by_variant(paths: list[Path]) -> list[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        parts = path.name.split(".")
        groups.setdefault(parts[1] if len(parts) > 2 else "", []).append(path)
    return list(groups.values())
