"""A repository in a cache that another tool keeps in the Hub's layout: found and judged complete; never written."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelFiles, ModelSource
from worker.store.local import read_json
from worker.store.selection import (
    CONFIG,
    MODEL_INDEX,
    Selection,
    component_files,
    components,
    is_shard,
    is_weights,
    pipeline_files,
    single_file,
)

# Components of these classes have no weights of their own.
_WEIGHTLESS = re.compile(r"Tokenizer|Processor|Scheduler|Extractor|Guider")


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A repository in such a cache. `last_used` is in seconds since the epoch."""

    name: str
    cache: Path
    files: int
    total_bytes: int
    last_used: float


def list_repositories(cache: Path) -> list[CachedRepository]:
    """Return every model repository in `cache`, largest first."""
    if not cache.is_dir():
        return []
    from huggingface_hub import scan_cache_dir

    repositories = [
        CachedRepository(repo.repo_id, cache, repo.nb_files, repo.size_on_disk, repo.last_accessed)
        for repo in scan_cache_dir(cache).repos
        if repo.repo_type == "model"
    ]
    return sorted(repositories, key=lambda repo: -repo.total_bytes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a repository on disk."""

    folder: Path
    commit: str


def repo_folder(cache: Path, repo: str) -> Path:
    """Return the folder of `repo` in the Hub's cache; names are case-sensitive."""
    return cache / f"models--{repo.replace('/', '--')}"


def find_snapshots(cache: Path, repo: str, revision: str | None) -> Iterator[Snapshot]:
    """Yield the snapshots in `cache` that may stand for `revision` (default: main), best first; complete or not."""
    folder = repo_folder(cache, repo)
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    if commit and (folder / "snapshots" / commit).is_dir():
        yield Snapshot(folder / "snapshots" / commit, commit)
    if revision is None:
        # RunPod's cached-model layout may lack refs, and a file may be newer than the pipeline beside it.
        others = [path for path in (folder / "snapshots").glob("*") if path.is_dir() and path.name != commit]
        for path in sorted(others, key=lambda path: (-path.stat().st_mtime, path.name)):
            yield Snapshot(path, path.name)


def complete_files(
    snapshot: Snapshot, source: ModelSource, variant: str | None, *, guess: bool = False, allow_pickles: bool = False
) -> ModelFiles | None:
    """Return the files that `source` names in a snapshot of another tool, if none is missing.

    With `guess`, the only file of a folder that is no pipeline stands for the repository: right where repositories
    are cached whole, wrong where somebody may have fetched one file of many.
    """
    folder = snapshot.folder / (source.subfolder or "")
    if source.filename:
        return _file(snapshot, folder / source.filename) if (folder / source.filename).is_file() else None
    names = file_names(folder)
    try:
        chosen = _complete_selection(folder, names, variant, source.wants, allow_pickles)
        if chosen is not None:
            total = sum((folder / name).stat().st_size for name in chosen.names)
            return ModelFiles(folder, total, revision=snapshot.commit, variant=chosen.variant)
        if not guess or MODEL_INDEX in names:
            return None
        top = [name for name in names if "/" not in name]
        return _file(snapshot, folder / single_file(top, source.locator, allow_pickles=allow_pickles))
    except (CorruptFile, UnsafeFormat, UnsupportedModel):
        return None


def file_names(folder: Path) -> list[str]:
    """Return every file below `folder`, relative to it; links to nothing are left out."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _file(snapshot: Snapshot, path: Path) -> ModelFiles:
    return ModelFiles(path, path.stat().st_size, revision=snapshot.commit)


def _complete_selection(
    folder: Path, names: list[str], variant: str | None, wants: Callable[[str], bool], allow_pickles: bool
) -> Selection | None:
    """Return a pipeline or a component with all its files; None if one is missing, or if the folder is neither."""
    if MODEL_INDEX in names:
        index = read_json(folder / MODEL_INDEX)
        chosen = pipeline_files(index, names, variant, wants=wants, allow_pickles=allow_pickles)
        parts = [
            (name, cls, [file for file in chosen.names if file.startswith(f"{name}/")])
            for name, cls in components(index)
            if wants(name)
        ]
        return chosen if all(_is_whole(folder, f"{name}/", cls, files) for name, cls, files in parts) else None
    if CONFIG in names:
        component = component_files(read_json(folder / CONFIG), names, variant, allow_pickles=allow_pickles)
        return component if component and _is_whole(folder, "", "", list(component.names)) else None
    return None


def _is_whole(folder: Path, component: str, cls: str, files: list[str]) -> bool:
    """True if a component has all that its class loads: files, config and weights together, every shard."""
    weights = {name for name in files if is_weights(name)}
    if not files or (not _WEIGHTLESS.search(cls) and bool(weights) != (f"{component}{CONFIG}" in files)):
        return False
    shards: set[str] = set()
    for name in files:
        if name.endswith(".json") and ".index." in name:
            weight_map = read_json(folder / name).get("weight_map")
            if not isinstance(weight_map, dict):
                return False
            shards |= {f"{component}{shard}" for shard in weight_map.values()}
    return shards <= weights and all(name in shards for name in weights if is_shard(name))
