"""A repository in a cache that another tool keeps in the Hub's layout: found and judged complete; never written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelFiles, ModelSource
from worker.store.completeness import check_complete, missing_files, refuse_missing
from worker.store.local import read_json
from worker.store.selection import (
    CONFIG,
    Selection,
    component_files,
    index_among,
    is_hidden,
    pipeline_files,
    single_file,
)

# Holds files against the digests that are known of them.
AreRight = Callable[[list[Path]], bool]


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
    snapshot: Snapshot,
    source: ModelSource,
    variant: str | None,
    *,
    guess: bool = False,
    allow_pickles: bool = False,
    are_right: AreRight = lambda paths: True,
) -> ModelFiles | None:
    """Return the files that `source` names in a snapshot of another tool, if none is missing and all `are_right`.

    With `guess`, the only file of a folder that is no pipeline stands for the repository: right where repositories
    are cached whole, wrong where somebody may have fetched one file of many.
    """
    folder = snapshot.folder / (source.subfolder or "")
    if source.filename:
        return _file(snapshot, folder / source.filename, are_right)
    names = file_names(folder)
    try:
        chosen = _complete_selection(folder, names, variant, source.wants, allow_pickles)
        if chosen is not None:
            if not are_right([folder / name for name in chosen.names]):
                return None
            total = sum((folder / name).stat().st_size for name in chosen.names)
            return ModelFiles(folder, total, revision=snapshot.commit, variant=chosen.variant)
        if not guess or index_among(names):
            return None
        top = [name for name in names if "/" not in name]
        return _file(snapshot, folder / single_file(top, source.locator, allow_pickles=allow_pickles), are_right)
    except (CorruptFile, UnsafeFormat, UnsupportedModel):
        return None


def file_names(folder: Path) -> list[str]:
    """Return every file below `folder`, relative to it; links to nothing are left out."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not is_hidden(name)]


def _file(snapshot: Snapshot, path: Path, are_right: AreRight) -> ModelFiles | None:
    if not path.is_file() or not are_right([path]):
        return None
    return ModelFiles(path, path.stat().st_size, revision=snapshot.commit)


def _complete_selection(
    folder: Path, names: list[str], variant: str | None, wants: Callable[[str], bool], allow_pickles: bool
) -> Selection | None:
    """Return a pipeline or a component with all its files; None if the folder is neither. Raises CorruptFile."""

    def read_index(name: str) -> dict[str, object]:
        return read_json(folder / name)

    if listed := index_among(names):
        index = read_json(folder / listed)
        chosen = pipeline_files(index, names, variant, wants=wants, allow_pickles=allow_pickles, read_index=read_index)
        check_complete("The copy", index, chosen.names, wants, read_index)
        return chosen
    if CONFIG in names:
        config = read_json(folder / CONFIG)
        component = component_files(config, names, variant, allow_pickles=allow_pickles, read_index=read_index)
        refuse_missing("The copy", missing_files("", "", component.names, read_index) if component else [])
        return component
    return None
