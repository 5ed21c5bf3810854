"""Models in folders of this machine: only below the operator's roots."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, UnsupportedModel
from worker.core.json_text import JsonTooLarge, parse_bounded
from worker.core.model import ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.result import Emit
from worker.core.turn import StopSignal
from worker.store.completeness import check_complete, refuse_bulky
from worker.store.lockfile import LockedFile, LockedModel
from worker.store.selection import (
    ADAPTER_CONFIG,
    CONFIG,
    MAX_OUTLINE_BYTES,
    MODEL_INDEX,
    MODULAR_INDEX,
    OUTLINE_NAMES,
    Selection,
    component_files,
    index_among,
    is_hidden,
    is_pickle,
    is_weights,
    pipeline_files,
    single_file,
)
from worker.store.transfer import digest_of

MAX_JSON_BYTES = 16 * 2**20  # an index of 50,000 shards' tensors
ReadHeader = Callable[[Path], TensorIndex]
DigestOf = Callable[[Path, Callable[[], None]], str]
Wants = Callable[[str], bool]


# Where people keep adapters below a folder of models, by the kind that a prompt names.
_ADAPTER_FOLDERS = {
    "lora": ("", "loras", "lora", "Lora", "LyCORIS", "models/loras", "models/Lora", "models/LyCORIS"),
    "hypernet": ("", "hypernetworks", "models/hypernetworks"),
    "embedding": ("embeddings", "models/embeddings"),
}
_MOST_NAMES = 2_000
_ADAPTER_SUFFIXES = (".safetensors", ".sft")


class AdapterFolders:
    """Adapters of the operator by the names of their files, as other programs' users name them in prompts."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)

    def find(self, kind: str, name: str) -> str | None:
        """Return the reference of the file `name`, without its suffix, in the usual folders; None where none is."""
        name = name.replace("\\", "/")
        for folder in (root / below for root in self._roots for below in _ADAPTER_FOLDERS[kind]):
            for suffix in _ADAPTER_SUFFIXES:
                try:
                    path = (folder / f"{name}{suffix}").resolve()
                    exists = path.is_file()
                except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a NUL
                    return None
                if exists and any(path.is_relative_to(root) for root in self._roots):
                    return f"file:{path}"
        return None

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of the files in the folders of this kind; not of those where models of all kinds lie."""
        found: set[str] = set()
        for folder in (root / below for root in self._roots for below in _ADAPTER_FOLDERS[kind] if below):
            paths = sorted(folder.glob("**/*")) if folder.is_dir() else []
            found |= {
                path.relative_to(folder).with_suffix("").as_posix()
                for path in paths
                if path.suffix in _ADAPTER_SUFFIXES and not is_hidden(path.name)
            }
        return tuple(sorted(found)[:_MOST_NAMES])


class LocalFolders:
    """Diffusers folders and single files below `roots`; nothing outside them can be named."""

    def __init__(
        self,
        roots: Iterable[Path],
        read_header: ReadHeader,
        *,
        allow_pickles: bool = False,
        digest: DigestOf = lambda path, check: digest_of(path, hashlib.sha256(), check),
    ) -> None:
        self._roots = tuple(root.resolve() for root in roots)
        self._read_header = read_header
        self._digest = digest
        self._allow_pickles = allow_pickles

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return JSON files of a folder, or the header of a file."""
        path = self._resolve(source)
        if path.is_file():
            header, beside = self._read_header(path), path.with_name(ADAPTER_CONFIG)
            configs = {ADAPTER_CONFIG: read_json(beside)} if source.filename is None and beside.is_file() else {}
            return Outline(configs, header, header.weight_bytes, file_name=path.name)
        return read_outline(path, variant, source.wants, allow_pickles=self._allow_pickles)

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the folder or file itself: nothing is copied. Raises CorruptFile if it is not as it was pinned."""
        path = self._resolve(source)
        states = () if path.is_file() else _states(path)
        chosen = _unchanged(path, variant, self._allow_pickles, source, states) if states else None
        if source.sha256 is not None and self.lock(source, variant, stop).whole_sha256 != source.sha256:
            raise CorruptFile(
                f"file:…/{path.name[:80]} is not what it was when its digest was noted; put the file back, or name "
                "what is there now.",
                field="model",
            )
        if chosen is None:
            return ModelFiles(root=path, total_bytes=_size(path), variant=variant, sha256=source.sha256)
        sizes = {name: size for name, size, _ in states}
        total = sum(sizes[name] for name in chosen.names)
        return ModelFiles(root=path, total_bytes=total, variant=chosen.variant, sha256=source.sha256)

    def lock(self, source: ModelSource, variant: str | None, stop: StopSignal) -> LockedModel:
        """Lock the files that are taken of a folder, or the one file, as they are now. Blocking."""
        path = self._resolve(source)
        folder, names = path.parent, [path.name]
        if path.is_dir():
            chosen = _selection(path, variant, self._allow_pickles, source.wants)
            folder, names = path, sorted(chosen.names if chosen else _names(path))
        files = {
            name: LockedFile((folder / name).stat().st_size, self._digest(folder / name, stop.check)) for name in names
        }
        return LockedModel(None, files)

    def _resolve(self, source: ModelSource) -> Path:
        path = Path(source.locator)
        try:
            resolved = (path / (source.filename or source.subfolder or "")).resolve()
            exists = resolved.exists()
        except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a NUL
            raise _absent(source) from None
        if not any(resolved.is_relative_to(root) for root in self._roots):
            raise AccessDenied(
                "The path is not below a folder that this worker may read; "
                "put the model on the volume, or let the operator add its folder to ALLOWED_MODEL_DIRS.",
                field="model",
            )
        if not exists:
            raise _absent(source)
        return resolved if resolved.is_file() else _meant(resolved)


def _meant(folder: Path) -> Path:
    """Return the model that a folder stands for: the newest snapshot of a Hub cache's, an only weight file, or itself.

    Raises UnsupportedModel for a cache of several models.
    """
    folder = _snapshot(folder)
    if _index_of(folder):
        return folder
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
        names = [entry.name for entry in visible if entry.is_file()]
    weights = [name for name in names if is_weights(name) and not is_pickle(name)]
    is_described = CONFIG in names and component_files(read_json(folder / CONFIG), names, None)
    # A folder inside may be what an only file needs: an IP-Adapter's image encoder.
    if is_described or not weights or (len(weights) == 1 and len(names) < len(visible)):
        return folder
    return folder / single_file(names, f"file:…/{folder.name[:80]}")


def _index_of(folder: Path) -> str | None:
    return index_among([name for name in (MODEL_INDEX, MODULAR_INDEX) if (folder / name).is_file()])


def _snapshot(folder: Path) -> Path:
    """Return the snapshot in a folder of the Hub's cache, by its main branch or by its time; else the folder."""
    repositories = sorted(path for path in folder.glob("models--*") if (path / "snapshots").is_dir())
    if len(repositories) > 1:
        names = [path.name for path in repositories]
        raise UnsupportedModel(
            f"{folder.name[:80]} is a cache of {len(names)} models; name one of its folders, as in "
            f"file:…/{names[0][:100]}.",
            field="model",
            details={"folders": names[:20]},
        )
    repository = repositories[0] if repositories else folder
    snapshots = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    reference = repository / "refs" / "main"
    commit = reference.read_text().strip() if reference.is_file() else None
    return max(snapshots, key=lambda path: (path.name == commit, path.stat().st_mtime), default=repository)


def read_outline(
    folder: Path, variant: str | None, wants: Wants = lambda part: True, *, allow_pickles: bool = False
) -> Outline:
    """Read a diffusers folder's own description in JSON. Raises CorruptFile for invalid JSON."""
    configs: dict[str, dict[str, object]] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        name = path.relative_to(folder).as_posix()
        if is_hidden(name):
            continue
        if OUTLINE_NAMES.fullmatch(name) and path.is_file() and path.stat().st_size <= MAX_OUTLINE_BYTES:
            configs[name] = read_json(path)
    chosen = _selection(folder, variant, allow_pickles, wants)
    names = chosen.names if chosen else _names(folder)
    weights = sum((folder / name).stat().st_size for name in names if is_weights(name))
    return Outline(configs=configs, weight_bytes=weights)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from disk. Raises CorruptFile, and UnsupportedModel for more than a model needs."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UnsupportedModel(
            f"{path.name} of the model has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read.", field="model"
        )
    try:
        value = parse_bounded(path.read_bytes())
    except JsonTooLarge as error:
        raise UnsupportedModel(f"{path.name} of the model {error}, more than any model needs.", field="model") from None
    except ValueError:
        raise CorruptFile(
            f"{path.name} of the model is not valid JSON; fetch the model again.", field="model"
        ) from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path.name} of the model holds no JSON object; fetch the model again.", field="model")
    return value


def _selection(folder: Path, variant: str | None, allow_pickles: bool, wants: Wants) -> Selection | None:
    """Return the files of the pipeline in `folder`; None if it is none.

    Raises UnsafeFormat for pickles, CorruptFile for a pipeline that lacks a file.
    """
    listed = _index_of(folder)
    if listed is None:
        return None
    index = read_json(folder / listed)

    def read_index(name: str) -> dict[str, object]:
        return read_json(folder / name)

    options: Any = {"allow_pickles": allow_pickles, "read_index": read_index}
    chosen = pipeline_files(index, _names(folder), variant, wants=wants, **options)
    refuse_bulky(folder.name[:80], ((name, (folder / name).stat().st_size) for name in chosen.names))
    # Weights that are not there at all are told by whoever loads them: a folder may be asked for its description alone.
    if listed == MODEL_INDEX:  # a modular one may list parts of other repositories: detection refuses those
        check_complete(folder.name[:80], index, chosen.names, wants, read_index, described_only=True)
    return chosen


@lru_cache(maxsize=256)
def _unchanged(
    folder: Path,
    variant: str | None,
    allow_pickles: bool,
    source: ModelSource,
    states: tuple[tuple[str, int, int], ...],
) -> Selection | None:
    """Return `_selection`'s answer, from memory as long as no file of the folder changed: each job asks for it."""
    return _selection(folder, variant, allow_pickles, source.wants)


def _states(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of each file below `folder`, hidden ones aside."""
    found = [(name, entry.stat()) for name, entry in _entries(folder)]
    return tuple(sorted((name, state.st_size, state.st_mtime_ns) for name, state in found))


def _names(folder: str | Path) -> Iterator[str]:
    return (name for name, _ in _entries(folder))


def _entries(folder: str | Path, before: str = "") -> "Iterator[tuple[str, os.DirEntry[str]]]":
    """Yield the files below `folder` that are not hidden. A link to a folder counts as one, but only at its top."""
    with os.scandir(folder) as entries:  # four times as fast as rglob: this is done for every job
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=not before):  # deeper links may lead in a circle
                yield from _entries(entry.path, f"{before}{entry.name}/")
            elif entry.is_file():
                yield before + entry.name, entry


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in _names(path))


def _absent(source: ModelSource) -> ModelNotFound:
    return ModelNotFound(
        f"file:…/{Path(source.locator).name[:80]} does not exist on this worker; check the path.", field="model"
    )
