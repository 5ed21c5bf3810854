"""A backup of the volume: one tar file of everything that cannot be fetched or made again, with its digests.

What is new on a volume is in, unless a row of LEFT_OUT names it. The manifest is the last member: digests are known
once the files were read. The file appears under its name once it is whole.
"""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker.store.history import VOLUME_ID

VERSION = 1
MANIFEST = "MANIFEST.json"
VOLUME, BESIDE = "volume", "beside"
LEFT_OUT: Mapping[str, str] = {
    "models": "models that were downloaded; models.lock says which, and they are fetched again",
    "huggingface": "the same, of the Hub's own programs",
    "huggingface-cache": "the same, of RunPod's hosts",
    "converted": "weights made of pickles that were downloaded",
}
"""Folders at the top of a volume that are in no backup, and why."""
RESULTS = "outputs"
"""The folder of results, which may be left out."""
UNPACKING = ".restore-"
"""How the folder begins in which a restore unpacks."""
_LEFTOVERS = (VOLUME_ID, ".part", ".tmp", "-journal", "-wal", "-shm")
_SQLITE = b"SQLite format 3\0"


class BackupError(ValueError):
    """A backup that cannot be made, or not be restored. One sentence, with the fix."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds: how many files and bytes; `skipped` are links and the like, which are in no backup."""

    files: int
    bytes: int
    skipped: tuple[str, ...]


def write_backup(
    target: Path, volume: Path, beside: Mapping[str, Path], *, results: bool = True, replace: bool = False
) -> Backup:
    """Write a backup of `volume` and of the files `beside` it, by their names in the backup. Blocking.

    Raises BackupError; OSError where the disk is full or not readable.
    """
    if target.exists() and not replace:
        raise BackupError(f"{target} is there already; name another file, or say --replace.")
    if not volume.is_dir():
        raise BackupError(f"{volume} is no folder; set VOLUME_DIR to the volume.")
    part = target.with_name(f".{target.name}.part")
    skipped: list[str] = []
    try:
        with part.open("wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            os.fchmod(raw.fileno(), 0o600)  # it may hold what only the operator reads
            manifest = {}
            for name, path in [*_of_volume(volume, {target, part}, results, skipped), *_beside(beside)]:
                manifest[name] = _add(archive, name, path)
            text = json.dumps({"version": VERSION, "made_at": int(time.time()), "files": manifest}, indent=1).encode()
            member = tarfile.TarInfo(MANIFEST)
            member.size, member.mtime = len(text), int(time.time())
            archive.addfile(member, io.BytesIO(text))
            archive.close()
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return Backup(len(manifest), sum(int(file["bytes"]) for file in manifest.values()), tuple(skipped))


def _beside(beside: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    return ((f"{BESIDE}/{name}", path) for name, path in sorted(beside.items()) if path.is_file())


def _of_volume(volume: Path, own: set[Path], results: bool, skipped: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files of a volume that are in a backup, by their names there."""
    own = {path.resolve() for path in own}
    for folder, folders, files in os.walk(volume, onerror=_raise):
        at_top = Path(folder) == volume
        left_out = {*LEFT_OUT, *([] if results else [RESULTS])} if at_top else set()
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith(UNPACKING))
        for name in [*folders, *sorted(files)]:
            path = Path(folder) / name
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) or path.name.endswith(_LEFTOVERS) or path.resolve() in own:
                continue
            inside = path.relative_to(volume).as_posix()
            if stat.S_ISREG(status.st_mode):
                yield f"{VOLUME}/{inside}", path
            else:
                skipped.append(inside)


def _raise(error: OSError) -> None:
    raise error


def _add(archive: tarfile.TarFile, name: str, path: Path) -> dict[str, int | str]:
    """Add a file as it is now, however it grows meanwhile. Returns its line of the manifest."""
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = status.st_size, int(status.st_mtime), status.st_mode & 0o777
        reader = _Hashing(file, status.st_size)
        archive.addfile(member, reader)
    return {"sha256": reader.digest.hexdigest(), "bytes": status.st_size}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file; of a database a copy that is whole, whoever writes into it."""
    with path.open("rb") as file:
        is_database = file.read(len(_SQLITE)) == _SQLITE
        file.seek(0)
        if not is_database:
            yield file
            return
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as copy:
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy.name)) as to:
            source.backup(to)
        yield copy.file


class _Hashing(io.RawIOBase):
    """The first `size` bytes of a file, and their digest once they were read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read, and count. Raises OSError for a file that became shorter."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        if len(data) < wanted:
            raise OSError("a file became shorter while it was read; try again")
        self._left -= len(data)
        self.digest.update(data)
        return data
