"""Entries: files that belong together on the volume, as links to blobs, made valid by one manifest, `.ok`."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from worker.core.errors import CorruptFile
from worker.store.places import clear_away, make_folder, make_way, read_small, state_of
from worker.store.transfer import digest_of

_MAX_NAME_CHARS = 180
_MAX_PART_BYTES = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")
ASIDE = "aside"  # a detail of entries that describe a model and are none: left out of listings
OK, PIN, FILES = ".ok", ".pin", "files"


@dataclass(frozen=True, slots=True)
class EntryFile:
    """One file of an entry: its path (a link to the blob), size in bytes, digest, and the blob's time when verified."""

    path: Path
    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Files that belong together, complete and verified. `root` is the folder that the files' names are relative to.

    `details` are values that the source wants to remember; `last_used` is in seconds since the epoch.
    """

    name: str
    root: Path
    files: Mapping[str, EntryFile]
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    pinned: bool = False
    last_used: float = 0.0
    bytes_downloaded: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())

    @property
    def digests(self) -> frozenset[str]:
        """The SHA-256 of every file."""
        return frozenset(file.sha256 for file in self.files.values())


class Entries:
    """The entries of one cache folder. Reads verify; all writes are atomic, and with `read_only` there are none."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._root = root / "entries"
        self._blobs = root / "blobs"
        self._revisions = root / "revisions"
        self._read_only = read_only
        self._hashed: dict[str, int] = {}  # digest -> time of a blob that was found right though its manifest is older

    def read(self, name: str) -> Entry | None:
        """Return the entry as its manifest has it, its files not looked at; None when there is none."""
        entry = self.read_folder(self.folder(name))
        # Two names meet in one folder where the file system does not tell cases apart.
        return entry if entry is not None and entry.name == name else None

    def all(self) -> Iterator[Entry]:
        """Yield every entry, as its manifest has it."""
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else []:
            entry = self.read_folder(folder)
            if entry is not None:
                yield entry

    def verified_times(self, blobs: Mapping[str, int]) -> dict[str, int]:
        """Return the times at which manifests vouch for blobs, given by digest with their present time.

        Manifests are read until each blob is vouched for as it is: none for a model of which nothing is here.
        """
        times: dict[str, int] = {}
        entries = self.all()
        while times != blobs and (entry := next(entries, None)) is not None:
            for file in entry.files.values():
                if file.sha256 in blobs and times.get(file.sha256) != blobs[file.sha256]:
                    times[file.sha256] = file.mtime_ns
        return times

    def verified(self, name: str, check: Callable[[], None]) -> Entry | None:
        """Return the entry if each file is still as it was verified; a file touched since is hashed again.

        A changed file is removed with its manifest, so that it is fetched again.
        """
        entry = self.read(name)
        if entry is None:
            return None
        files = {
            file: self.recheck(blob, check) if state_of(blob.path) is not None else None
            for file, blob in entry.files.items()
        }
        sound = {file: blob for file, blob in files.items() if blob is not None}
        if len(sound) < len(files):
            if not self._read_only:
                (self.folder(name) / OK).unlink(missing_ok=True)
            return None
        if sound != entry.files and not self._read_only:
            with contextlib.suppress(OSError):
                self._write_manifest(replace(entry, files=sound))
        return replace(entry, files=sound)

    def recheck(
        self, file: EntryFile, check: Callable[[], None], *, thorough: bool = False, removes: bool = True
    ) -> EntryFile | None:
        """Return the file with its blob's present time if the content is still right; else None, the blob removed."""
        blob = self._blobs / file.sha256
        state = state_of(blob)
        if state is not None and state.st_size == file.size:
            now = replace(file, mtime_ns=state.st_mtime_ns)
            if now.mtime_ns in {file.mtime_ns, self._hashed.get(file.sha256)} and not thorough:
                return now
            if digest_of(blob, hashlib.sha256(), check) == file.sha256:
                self._hashed[file.sha256] = now.mtime_ns
                return now
        if removes and not self._read_only:
            clear_away(blob)
        return None

    def publish(self, name: str, files: Mapping[str, EntryFile], details: Mapping[str, JsonValue]) -> Entry:
        """Link the blobs of `files` under their names, and make the entry valid in one step."""
        folder = self.folder(name)
        for file in files.values():
            make_folder(file.path.parent, below=self._root)
            make_way(file.path)
            link = file.path.with_name(f".{uuid.uuid4().hex}")
            # Relative, because a volume is mounted at another place on another platform.
            link.symlink_to(os.path.relpath(self._blobs / file.sha256, file.path.parent))
            link.replace(file.path)
        entry = Entry(name, folder / FILES, files, details, pinned=(folder / PIN).exists())
        self._write_manifest(entry)
        return entry

    def revision(self, name: str) -> str | None:
        """Return the revision that was noted for a moving name."""
        return (read_small(self._revisions / escape(name)) or "").strip() or None

    def note_revision(self, name: str, revision: str) -> None:
        """Note the present revision of a moving name."""
        write_atomically(self._revisions / escape(name), revision)

    def touch(self, name: str) -> None:
        """Note that the entry is used now: it is not evicted for a while, and last of all afterwards."""
        if not self._read_only:
            with contextlib.suppress(OSError):
                os.utime(self.folder(name) / OK)

    def pin(self, name: str, *, pinned: bool) -> None:
        """Never evict the entry, or let it be evicted again."""
        mark = self.folder(name) / PIN
        mark.touch() if pinned else mark.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove the entry; its blobs stay. Invalid first, so that nobody takes half of it for the whole."""
        folder = self.folder(name)
        (folder / OK).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def folder(self, name: str) -> Path:
        """Return the folder of the entry called `name`."""
        return self._root / escape(name)

    def path_of(self, name: str, file: str) -> Path:
        """Return the path of the link to a file of an entry. Raises CorruptFile for a name that leaves the entry."""
        path = PurePosixPath(file)
        hostile = path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file or not path.parts
        if hostile or any(len(part.encode("utf-8", "surrogatepass")) > _MAX_PART_BYTES for part in path.parts):
            raise CorruptFile(
                f"{file[:80]!r} cannot be the name of a file; the source lists it wrongly.", field="model"
            )
        return self.folder(name) / FILES / path

    def read_folder(self, folder: Path) -> Entry | None:
        """Return the entry in `folder`, as its manifest has it."""
        manifest = folder / OK
        try:
            value = json.loads(read_small(manifest) or "")
            used = manifest.stat().st_mtime
            name, details = value["name"], value["details"]
            files = {
                file: EntryFile(folder / FILES / file, int(item["size"]), str(item["sha256"]), int(item["mtime_ns"]))
                for file, item in value["files"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str) or not files or not isinstance(details, dict):
            return None
        return Entry(name, folder / FILES, files, details, pinned=(folder / PIN).exists(), last_used=used)

    def _write_manifest(self, entry: Entry) -> None:
        files = {
            name: {"size": file.size, "sha256": file.sha256, "mtime_ns": file.mtime_ns}
            for name, file in sorted(entry.files.items())
        }
        text = json.dumps({"name": entry.name, "files": files, "details": dict(entry.details)}, indent=1)
        write_atomically(self.folder(entry.name) / OK, text)


def known_digest(path: Path) -> str | None:
    """Return the SHA-256 of an entry's file, which its blob is named by; None for a file that lies elsewhere."""
    blob = path.resolve()
    ours = blob.parent.name == "blobs" and (blob.parent.parent / "entries").is_dir()
    return blob.name if ours and _SHA256.fullmatch(blob.name) else None


def escape(name: str) -> str:
    """Return a file name for any text: all but letters, digits, `.`, `_` and `-` escaped, and cut if it is long."""
    escaped = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else _hex(char) for char in name)
    if len(escaped) > _MAX_NAME_CHARS or escaped.startswith("."):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        escaped = f"{escaped.lstrip('.')[: _MAX_NAME_CHARS - 33]}-{digest[:32]}"
    return escaped


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` in one step that survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_way(path)
    partial = path.with_name(f".{uuid.uuid4().hex}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _hex(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
