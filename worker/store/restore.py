"""A backup, put back: looked at as a whole and verified before any file of the volume is touched.

The file may come from anywhere. Only plain files are taken, only below the places that a backup has, and only those
whose digests the manifest names. They are unpacked beside their places and renamed, each at once; what is the same
already stays, so that a restore that was interrupted can be run again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from worker.store.backup import BESIDE, LEFT_OUT, MANIFEST, UNPACKING, VERSION, VOLUME, BackupError

MAX_FILES = 1_000_000
MAX_MANIFEST_BYTES = 400_000_000
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: the files that were written, and how many were the same already."""

    written: tuple[str, ...]
    same: int


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a backup: the member, its place here and its digest."""

    member: tarfile.TarInfo
    path: Path
    sha256: str


def restore(archive: Path, volume: Path, beside: Mapping[str, Path], *, replace: bool = False) -> Restored:
    """Put the files of a backup back into `volume` and to their places `beside` it. Blocking.

    Raises BackupError, and nothing is changed then; OSError for a disk that is full or not writable.
    """
    volume.mkdir(parents=True, exist_ok=True)
    with _reading(archive) as tar:
        files = _checked(tar, volume, beside)
        new = [file for file in files if _digest(file.path) != file.sha256]
        there = [file for file in new if file.path.exists() or file.path.is_symlink()]
        if there and not replace:
            raise BackupError(
                f"{len(there)} files are there already and differ, the first is {there[0].path}; say --replace to "
                "have those of the backup in their place."
            )
        needed, free = sum(file.member.size for file in new), shutil.disk_usage(volume).free
        if needed > free:
            raise BackupError(f"The backup takes {needed:,} bytes and {free:,} are free on {volume}; free some space.")
        _put(tar, new, volume)
    return Restored(tuple(file.member.name for file in new), len(files) - len(new))


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open a backup. Raises BackupError for what is none, here and while it is read."""
    try:
        with tarfile.open(archive, mode="r:") as tar:
            yield tar
    except FileNotFoundError as error:
        if error.filename in (str(archive), archive):
            raise BackupError(f"{archive} is not there.") from None
        raise
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{archive} is no backup that is whole ({type(error).__name__}); take another one.") from None


def _checked(tar: tarfile.TarFile, volume: Path, beside: Mapping[str, Path]) -> list[_File]:
    """Return the files of a backup, each with its place. Raises BackupError for whatever does not belong there."""
    members = _members(tar)
    named = _manifest(tar, members.pop(MANIFEST, None))
    if odd := sorted({*members} ^ {*named}):
        raise BackupError(f"{odd[0][:200]!r} is in the backup or in its manifest, and not in both.")
    files = [_File(each, _place(name, volume, beside), _named(named[name], each)) for name, each in members.items()]
    inside, places = volume.resolve(), {file.path for file in files}
    for file in files:
        if file.path.is_dir() or any(above in places or above.is_file() for above in file.path.parents):
            raise BackupError(f"{file.member.name[:200]!r} would be a file where a folder is, or the other way round.")
        if file.member.name.startswith(f"{VOLUME}/") and not file.path.parent.resolve().is_relative_to(inside):
            raise BackupError(f"{file.member.name[:200]!r} would lie outside the volume, through a link that is there.")
    return files


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return what is in a backup, by name. Raises BackupError for what is no plain file, or there twice."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if not member.isreg() or member.issparse():
            raise BackupError(f"{member.name[:200]!r} is no plain file; a backup has no links, folders or devices.")
        if member.name in members:
            raise BackupError(f"{member.name[:200]!r} is twice in the backup.")
        members[member.name] = member
        if len(members) > MAX_FILES:
            raise BackupError(f"The backup has more than {MAX_FILES:,} files; that is none of this worker's.")
    return members


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Mapping[str, Any]:
    """Return the files that the manifest names, by name."""
    if member is None or member.size > MAX_MANIFEST_BYTES:
        raise BackupError(f"The backup has no {MANIFEST}: it is not whole, or none of this worker's.")
    stream = tar.extractfile(member)
    try:
        manifest = json.loads(stream.read() if stream else b"")
        version, files = manifest["version"], manifest["files"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BackupError(f"The backup's {MANIFEST} cannot be read; take another one.") from None
    if version != VERSION or not isinstance(files, dict):
        text = f"The backup is of version {str(version)[:20]}, and this worker reads {VERSION}"
        raise BackupError(f"{text}; restore it with the worker that made it.")
    return files


def _named(line: object, member: tarfile.TarInfo) -> str:
    """Return the digest in a file's line of the manifest."""
    if isinstance(line, dict) and line.get("bytes") == member.size and isinstance(digest := line.get("sha256"), str):
        return digest
    raise BackupError(f"{member.name[:200]!r} is not as long as the manifest says; take another backup.")


def _place(name: str, volume: Path, beside: Mapping[str, Path]) -> Path:
    """Return where a file of the backup belongs."""
    parts = PurePosixPath(name).parts
    is_plain = "/".join(parts) == name and not {"..", ".", "/"} & {*parts} and not {"\\", "\0"} & {*name}
    if is_plain and len(parts) == 2 and parts[0] == BESIDE and parts[1] in beside:
        return beside[parts[1]]
    if is_plain and len(parts) > 1 and parts[0] == VOLUME and parts[1] not in LEFT_OUT:
        return volume.joinpath(*parts[1:])
    raise BackupError(f"{name[:200]!r} has no place on this volume; a backup of this worker has no such file.")


def _put(tar: tarfile.TarFile, files: list[_File], volume: Path) -> None:
    """Unpack all files, verify them, and only then rename each to its place."""
    with tempfile.TemporaryDirectory(dir=volume, prefix=UNPACKING, ignore_cleanup_errors=True) as folder:
        unpacked = [(file, Path(folder) / str(index)) for index, file in enumerate(files)]
        for file, path in unpacked:
            if _unpack(tar, file.member, path) != file.sha256:
                raise BackupError(f"{file.member.name[:200]!r} is not what its digest says; take another backup.")
        for file, path in unpacked:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            _move(path, file.path)


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    """Write a member's bytes, and return their digest."""
    digest, stream = hashlib.sha256(), tar.extractfile(member)
    with path.open("xb") as file:
        while stream is not None and (data := stream.read(_PIECE)):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(member.mode & 0o755 | 0o600)
    os.utime(path, (member.mtime, member.mtime))
    return digest.hexdigest()


def _move(source: Path, target: Path) -> None:
    """Rename a file to its place; on another disk than the volume's by way of a copy beside that place."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}.part")
        shutil.copy2(source, copy)
        copy.replace(target)


def _digest(path: Path) -> str | None:
    """Return the digest of a file that is there; None without one."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
