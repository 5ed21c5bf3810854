"""What the volume holds of the Hub, and how to make room."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from worker.store.snapshot import MANIFESTS, repo_folder


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """One repository in the cache. `last_used` is in seconds since the epoch."""

    name: str
    revisions: tuple[str, ...]
    total_bytes: int
    last_used: float


def list_cache(cache: Path) -> list[CachedRepository]:
    """Every repository in `cache`, largest first."""
    if not cache.is_dir():
        return []
    from huggingface_hub import scan_cache_dir

    found = [
        CachedRepository(
            repo.repo_id,
            tuple(sorted(item.commit_hash for item in repo.revisions)),
            repo.size_on_disk,
            repo.last_accessed,
        )
        for repo in scan_cache_dir(cache).repos
        if repo.repo_type == "model"
    ]
    return sorted(found, key=lambda repo: -repo.total_bytes)


def remove_from_cache(cache: Path, name: str) -> int:
    """Delete a repository with all its revisions; returns the bytes given back, 0 when there was none."""
    folder = repo_folder(cache, name)
    if not folder.is_dir():
        return 0
    # Counted by hand: what an interrupted download left behind is in nobody's list.
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    shutil.rmtree(cache / MANIFESTS / folder.name, ignore_errors=True)
    shutil.rmtree(folder)
    return freed
