"""Room on the volume: the least recently used models go, pinned and used ones stay, garbage is swept."""

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import DiskFull
from worker.store.entries import OK, PIN, Entries, Entry
from worker.store.places import clear_away, read_small, size_of

# A use is a lease by time: a job opens the files of its entry within this, and an open file outlives its name.
# So no worker has to keep a mark alive, and none that died can hold one.
IN_USE_S = 15 * 60.0
GARBAGE_AGE_S = 24 * 3600.0  # younger than this it may belong to a download that goes on
RESERVE_BYTES = 512 * 2**20  # for results, logs and other users of the volume
_LEASE_AGE_S = 600.0  # a lease that has not moved for so long has no holder, whatever age garbage must have
_SMALL = 32  # a need of less than this part of the reserve may be met from it
_SWEEP_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Swept:
    """The removed files: their number and their bytes."""

    files: int = 0
    total_bytes: int = 0

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(self.files + other.files, self.total_bytes + other.total_bytes)


class Janitor:
    """Keeps one cache folder within `max_bytes` and the volume's free space. Ages are by the volume's own clock.

    `kept` are digests of files that stay.
    """

    def __init__(
        self, root: Path, entries: Entries, *, max_bytes: int | None = None, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._root, self._entries = root, entries
        self.kept: Callable[[], Collection[str]] = frozenset
        self._blobs, self._leases = root / "blobs", root / "leases"
        self._max_bytes, self._reserve_bytes = max_bytes, reserve_bytes
        self._swept_at = -_SWEEP_EVERY_S

    def make_room(self, needed: int, label: str, *, keep: Iterable[str] = ()) -> None:
        """Evict until `needed` more bytes fit; `keep` are blobs that stay. Raises DiskFull, having evicted nothing."""
        lack = self._lack(needed) if needed else 0
        if lack <= 0:
            return
        idle = self._idle()
        if self._spare(idle, keep) < lack:
            raise self._full(needed, label)
        for entry in idle:
            if lack <= 0:
                return
            now = self._entries.read(entry.name)
            if now is not None and now.last_used == entry.last_used and not now.pinned:
                lack -= self.remove(entry, keep=keep)
        if lack > 0:
            raise self._full(needed, label)

    def _spare(self, idle: list[Entry], keep: Iterable[str]) -> int:
        """Return the bytes of the blobs that only `idle` entries name, without the blobs to be kept."""
        names = {entry.name for entry in idle}
        busy = [entry for entry in self._entries.all() if entry.name not in names]
        protected = {file.sha256 for entry in busy for file in entry.files.values()} | set(keep)
        spare = {file.sha256: file.size for entry in idle for file in entry.files.values()}
        return sum(size for sha256, size in spare.items() if sha256 not in protected)

    def remove(self, entry: Entry, *, keep: Iterable[str] = ()) -> int:
        """Remove an entry with the blobs that no other entry names, and return the bytes given back."""
        self._entries.remove(entry.name)
        protected = {file.sha256 for other in self._entries.all() for file in other.files.values()} | set(keep)
        freed = 0
        for sha256 in {file.sha256 for file in entry.files.values()} - protected:
            if not (self._leases / sha256).exists():  # somebody is fetching it anew
                freed += _unlink(self._blobs / sha256)
        return freed

    def sweep_now_and_then(self) -> None:
        """Sweep, but not before every download of many."""
        if time.monotonic() - self._swept_at >= _SWEEP_EVERY_S:
            self._swept_at = time.monotonic()
            with contextlib.suppress(OSError):  # another worker sweeps the same files
                self.sweep()

    def sweep(self, older_than_s: float = GARBAGE_AGE_S) -> Swept:
        """Remove files that no entry names and nobody touched for `older_than_s`: partial files, leases, lost blobs."""
        if not self._root.is_dir():
            return Swept()
        limit = self._now() - older_than_s
        swept = self._sweep_entries(limit)
        referenced = {file.sha256 for entry in self._entries.all() for file in entry.files.values()}
        for path in self._children("leases"):
            swept += _unlink_old(path, min(limit, self._now() - _LEASE_AGE_S))
        for path in self._children("partial"):
            if not (self._leases / path.stem).exists():
                swept += _unlink_old(path, limit)
        for path in self._children("blobs"):
            if path.name not in referenced and not (self._leases / path.name).exists():
                swept += _unlink_old(path, limit)
        for path in self._children("checked"):
            if not (self._blobs / path.name).exists():
                swept += _unlink_old(path, limit)
        for path in self._children("digests"):
            if not (self._blobs / (read_small(path) or "none")[:64]).exists():
                swept += _unlink_old(path, limit)
        return swept

    def used_bytes(self) -> int:
        """Bytes of all blobs and partial files."""
        return sum(size_of(path) for folder in ("blobs", "partial") for path in self._children(folder))

    def _sweep_entries(self, limit: float) -> Swept:
        """Remove entries without a manifest or with links to nothing, and what a killed writer left in others."""
        swept = Swept()
        for folder in self._children("entries"):
            entry = self._entries.read_folder(folder)
            if entry is None or not all(file.path.is_file() for file in entry.files.values()):
                newest = max((path.lstat().st_mtime for path in [folder, *folder.rglob("*")]), default=0.0)
                if newest < limit and not (folder / PIN).exists():
                    (folder / OK).unlink(missing_ok=True)
                    swept += Swept(sum(1 for path in folder.rglob("*") if not path.is_dir()))
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            for path in folder.glob(".*"):
                if path.name not in {OK, PIN}:
                    swept += _unlink_old(path, limit)
        return swept

    def _lack(self, needed: int) -> int:
        self._root.mkdir(parents=True, exist_ok=True)
        reserve = 0 if needed < self._reserve_bytes // _SMALL else self._reserve_bytes
        lack = needed + reserve - shutil.disk_usage(self._root).free
        if self._max_bytes is not None:
            lack = max(lack, self.used_bytes() + needed - self._max_bytes)
        return lack

    def _idle(self) -> list[Entry]:
        """Return the entries that may be evicted, the least recently used first: none of a version in use."""
        limit, kept = self._now() - IN_USE_S, set(self.kept())
        entries = [
            entry
            for entry in self._entries.all()
            if not entry.pinned and entry.last_used < limit and not entry.digests & kept
        ]
        return sorted(entries, key=lambda entry: entry.last_used)

    def _now(self) -> float:
        """Return the time as the volume's server has it, whose clock gave all files theirs."""
        probe = self._root / f".{uuid.uuid4().hex}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)

    def _children(self, folder: str) -> list[Path]:
        path = self._root / folder
        return sorted(path.iterdir()) if path.is_dir() else []

    def _full(self, needed: int, label: str) -> DiskFull:
        free = shutil.disk_usage(self._root).free
        quota = f", and CACHE_MAX_GB allows {self._max_bytes / 1e9:g} GB of models" if self._max_bytes else ""
        return DiskFull(
            f"{label} needs {needed / 2**30:.1f} GiB and the volume has {free / 2**30:.1f} GiB free{quota}; "
            "use a larger volume, or remove or unpin models with `python -m worker cache`.",
            field="model",
        )


def _unlink(path: Path) -> int:
    size = size_of(path)
    clear_away(path)
    return size


def _unlink_old(path: Path, limit: float) -> Swept:
    try:
        state = path.lstat()
        if state.st_mtime >= limit:
            return Swept()
        clear_away(path)
    except FileNotFoundError:
        return Swept()
    return Swept(1, state.st_size)
