"""Repositories in the caches of other tools, in the Hub's layout: used where they lie, and never written."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from worker.core.model import ModelFiles, ModelSource
from worker.core.turn import StopSignal
from worker.store import snapshot as disk
from worker.store.digests import digest_by_name
from worker.store.hub_listing import Listing
from worker.store.selection import Selection
from worker.store.transfer import digest_of


class AreRight(Protocol):
    """Judges files by the digests that are known of them."""

    def __call__(self, files: Iterable[tuple[Path, str | None]], stop: StopSignal) -> bool:
        """True if each file has its digest; None is none."""
        ...


class OtherCaches:
    """Caches that this worker did not fill.

    `lookup` hold repositories whole and are taken unasked: RunPod's cached models. Of `shared`, those of other tools
    and of this worker's first version, the files of the commit that the Hub names are taken. A file is held against
    its digest before it is first used, where one is at hand: in the Hub's listing, or as the name of its blob.
    """

    def __init__(
        self, lookup: Iterable[Path], shared: Iterable[Path], are_right: AreRight, *, allow_pickles: bool = False
    ) -> None:
        self._lookup, self._shared = tuple(lookup), tuple(shared)
        self._are_right = are_right
        self._allow_pickles = allow_pickles

    def described(self) -> "OtherCaches":
        """Return the same caches for a look at descriptions: no weights are read, so nothing is judged."""
        return OtherCaches(self._lookup, self._shared, lambda files, stop: True, allow_pickles=self._allow_pickles)

    def whole(self, source: ModelSource, variant: str | None, stop: StopSignal) -> ModelFiles | None:
        """Return the files of `source` from a cache that is taken unasked."""
        return self._found(self._lookup, source, variant, stop, guess=True)

    def older(self, source: ModelSource, variant: str | None, stop: StopSignal) -> ModelFiles | None:
        """Return the files of `source` from another tool's cache, perhaps of an older commit, if none is missing."""
        return self._found(self._shared, source, variant, stop, guess=False)

    def listed(self, source: ModelSource, listing: Listing, chosen: Selection, stop: StopSignal) -> ModelFiles | None:
        """Return the chosen files from another tool's cache, if all are there as the Hub lists them."""
        for cache in self._shared:
            folder = disk.repo_folder(cache, source.locator) / "snapshots" / listing.commit / (source.subfolder or "")
            below = f"{source.subfolder}/" if source.subfolder else ""
            files = {folder / name: listing.files[f"{below}{name}"] for name in chosen.names}
            sizes = {path: _size(path) for path in files}
            if any(sizes[path] != file.size for path, file in files.items()):
                continue
            if self._are_right([(path, file.sha256 or file.git_sha1) for path, file in files.items()], stop):
                root = folder / chosen.main if chosen.main else folder
                return ModelFiles(root, sum(size or 0 for size in sizes.values()), listing.commit, chosen.variant)
        return None

    def _found(
        self, caches: Iterable[Path], source: ModelSource, variant: str | None, stop: StopSignal, *, guess: bool
    ) -> ModelFiles | None:
        def are_right(paths: list[Path]) -> bool:
            return self._are_right([(path, digest_by_name(path)) for path in paths], stop)

        for cache in caches:
            for snapshot in disk.find_snapshots(cache, source.locator, source.revision):
                files = disk.complete_files(
                    snapshot, source, variant, guess=guess, allow_pickles=self._allow_pickles, are_right=are_right
                )
                if files is not None and is_pinned_content(source, files, stop):
                    return files
        return None


def is_pinned_content(source: ModelSource, files: ModelFiles, stop: StopSignal) -> bool:
    """True if the files have the caller's own digest, or the caller sent none."""
    if source.sha256 is None:
        return True
    if not files.is_single_file:
        return False
    return source.sha256.lower() == (files.sha256 or digest_of(files.root, hashlib.sha256(), stop.check))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
