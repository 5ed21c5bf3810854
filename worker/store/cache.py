"""The volume cache: model files by content, shared by every worker that mounts the volume.

    <root>/blobs/<sha256>            a file's content, named by its digest; never written again once it is here
    <root>/entries/<name>/.ok        the manifest: names, sizes, digests, times of the blobs. Without it: no entry
    <root>/entries/<name>/files/…    the source's own file names, as relative links to blobs
    <root>/entries/<name>/.pin       there is one: never evicted
    <root>/partial/<key>.part        a download on its way (`.etag` beside it where no digest is known)
    <root>/leases/<key>              the worker that is fetching that file now
    <root>/revisions/<name>          the revision of a branch, or of another name that moves, at the last request
    <root>/digests/<key>             the SHA-256 of a file that was asked for by git's digest, or by URL alone
    <root>/checked/<sha256>          its time is when that blob was last read back and found right
    <root>/foreign/<key>             the digest of a file that another tool keeps, while that file is untouched

An entry holds files that belong together: a repository at a commit, a file of CivitAI, a URL. Its name is the
source's text, escaped. Files that several entries have in common lie here once.

Nothing here needs a lock: a blob appears by a rename once its digest was checked, an entry by the rename of its
manifest, and both can be repeated by anybody. A lease (lease.py) only saves the second transfer. A file that was
changed on disk is noticed by size or time and hashed again; a wrong one is removed and fetched anew.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from worker.core.errors import InvalidRequest, SourceUnavailable
from worker.store.entries import Entries, Entry, EntryFile, write_atomically
from worker.store.janitor import GARBAGE_AGE_S, RESERVE_BYTES, Janitor, Swept
from worker.store.lease import BEAT_S, STALE_S, Lease, LeaseLost
from worker.store.meter import ByteMeter, run_all
from worker.store.places import make_way, read_small, size_of, state_of
from worker.store.transfer import Download, Fetch, Patience, RemoteFile, disk_errors

_POLL_S = 0.2
_WORKERS = 4  # files that are fetched at a time
_ROUNDS = 5  # in which files may be evicted while the others are fetched


class VolumeCache:
    """Model files below `root`; `lookup` roots are other caches of this layout, read first and never written.

    `max_bytes` is the most that the models may take together, unless the volume has less. `beat_s` is the pause between
    two beats of a lease, `stale_s` the silence after which it counts as dead, both in seconds.
    """

    def __init__(
        self,
        root: Path,
        *,
        lookup: Iterable[Path] = (),
        max_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
        patience: Patience | None = None,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> None:
        self.root = root
        self._entries = Entries(root)
        self._lookup = tuple(Entries(path, read_only=True) for path in lookup)
        self._janitor = Janitor(root, self._entries, max_bytes=max_bytes, reserve_bytes=reserve_bytes)
        self._patience = patience or Patience()
        self._beat_s, self._stale_s = beat_s, stale_s

    # Reading

    def entry(self, name: str, check: Callable[[], None] = lambda: None) -> Entry | None:
        """Return the complete, unharmed entry called `name` and mark it as used; else None.

        `check` may raise; it is called while a file that was touched is hashed again, which can take seconds.
        """
        for entries in (*self._lookup, self._entries):
            entry = entries.verified(name, check)
            if entry is not None:
                entries.touch(name)
                return entry
        return None

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return all entries whose name begins with `prefix`, as their manifests have them, the last used first."""
        listed = [entry for entries in (*self._lookup, self._entries) for entry in entries.all()]
        return sorted((entry for entry in listed if entry.name.startswith(prefix)), key=lambda entry: -entry.last_used)

    def holds(self, digests: Collection[str]) -> bool:
        """True if one entry has files of all these digests, and each lies here in its size."""
        for entries in (self._entries, *self._lookup):
            for entry in entries.all():
                sizes = {file.sha256: file for file in entry.files.values()}
                if set(digests) <= sizes.keys():
                    return all(size_of(sizes[digest].path) == sizes[digest].size for digest in digests)
        return False

    def revision(self, name: str, *, baked: bool = False) -> str | None:
        """Return the revision that `name` stood for at its last fetch; with `baked`, only of the `lookup` caches."""
        for entries in self._lookup if baked else (self._entries, *self._lookup):
            if noted := entries.revision(name):
                return noted
        return None

    def note_revision(self, name: str, revision: str) -> None:
        """Remember the revision of a moving name, for the day when its source does not answer."""
        if self._entries.revision(name) != revision:
            self._entries.note_revision(name, revision)

    # Fetching

    def fetch(self, fetch: Fetch) -> Entry:
        """Return the entry with all of its files; transfer those whose blob is not on the volume. Blocking.

        Raises the error of `fetch.refused` for an HTTP refusal or an HTML page in a file's place; and CorruptFile,
        DiskFull, SourceUnavailable, JobTimeout, JobCancelled.
        """
        cached = self.entry(fetch.name, fetch.stop.check)
        if cached is not None and _covers(cached, fetch.files):
            return cached
        with disk_errors(fetch.label):
            return self._fetch(fetch)

    def _fetch(self, fetch: Fetch) -> Entry:
        self._janitor.sweep_now_and_then()
        sizes = {file.name: file.size for file in fetch.files if file.size is not None}
        meter = ByteMeter(fetch.label, sizes, fetch.emit, fetch.stop)
        try:
            for _ in range(_ROUNDS):
                meter.check()
                files = self._on_volume(fetch, meter)
                # The largest first: the last file to begin should not be the slowest.
                missing = sorted(
                    (file for file in fetch.files if file.name not in files), key=lambda file: -(file.size or 0)
                )
                needed = sum(self._left(file) for file in missing)
                self._janitor.make_room(needed, fetch.label, keep=[file.sha256 for file in files.values()])

                def obtaining(file: RemoteFile, files: dict[str, EntryFile] = files) -> Callable[[], None]:
                    return lambda: files.update({file.name: self._obtain(fetch, file, meter)})

                run_all(map(obtaining, missing), fetch.stop, _WORKERS)
                entry = self._entries.publish(fetch.name, files, fetch.details)
                # A blob that was here already may have been evicted meanwhile: rare, and mended by another round.
                if all(file.path.is_file() for file in files.values()):
                    return replace(entry, bytes_downloaded=meter.received)
            raise SourceUnavailable(
                f"The volume did not keep the files of {fetch.label}: they were gone each time all of them were there; "
                "send the job again, and look at what else removes files from it.",
                field="model",
            )
        finally:
            meter.close()

    def _on_volume(self, fetch: Fetch, meter: ByteMeter) -> dict[str, EntryFile]:
        """Return the files whose content lies on the volume and is right."""
        here: list[tuple[RemoteFile, str, os.stat_result]] = []
        for file in fetch.files:
            noted = self._note(file.key) if file.git_sha1 else None
            sha256 = file.sha256 or (noted[0] if noted else None)
            state = state_of(self.root / "blobs" / sha256) if sha256 else None
            if sha256 is not None and state is not None:
                here.append((file, sha256, state))
        verified_times = self._entries.verified_times({sha256: state.st_mtime_ns for _, sha256, state in here})
        files: dict[str, EntryFile] = {}
        for file, sha256, state in here:
            size = state.st_size if file.size is None else file.size
            # A blob that no manifest vouches for is hashed: its download was killed before the last file.
            candidate = EntryFile(
                self._entries.path_of(fetch.name, file.name), size, sha256, verified_times.get(sha256, -1)
            )
            checked = self._entries.recheck(candidate, meter.check)
            if checked is not None:
                files[file.name] = checked
                meter.finished(file.name)
        return files

    def _obtain(self, fetch: Fetch, file: RemoteFile, meter: ByteMeter) -> EntryFile:
        """Return `file` as a blob, fetched by this worker or by another one that holds its lease."""
        path = self._entries.path_of(fetch.name, file.name)
        before = self._note(file.key)
        lease = Lease(self.root / "leases" / file.key, beat_s=self._beat_s, stale_s=self._stale_s)
        with lease:
            while True:
                meter.check()
                leads = lease.acquire()
                # A blob that was not here a moment ago was checked by the worker that published it.
                published = self._published(file, path, before)
                if published is not None:
                    meter.finished(file.name)
                    return published
                if leads:
                    with contextlib.suppress(LeaseLost):
                        return self._transfer(fetch, file, meter, lease)
                    lease.release()
                else:
                    meter.advance(file.name, size_of(self._part(file)))
                    time.sleep(_POLL_S)

    def _transfer(self, fetch: Fetch, file: RemoteFile, meter: ByteMeter, lease: Lease) -> EntryFile:
        partial = self._part(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        make_way(partial)
        make_way(partial.with_suffix(".etag"))

        def check() -> None:
            meter.check()
            lease.check()

        download = Download(
            fetch,
            file,
            partial,
            check=check,
            advance=lambda done, received, size: meter.advance(file.name, done, received, size),
            patience=self._patience,
        )
        sha256, size = download.run()
        lease.check(look=True)
        blob = self.root / "blobs" / sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        make_way(blob)
        # Whole seconds survive image layers, archives and object stores; finer times would cost a hash on each of them.
        mtime_ns = int(time.time()) * 10**9
        try:
            os.utime(partial, ns=(mtime_ns, mtime_ns))
            partial.replace(blob)
        except FileNotFoundError:
            raise LeaseLost from None  # another published it from under us
        _sync_folder(blob.parent)
        if file.sha256 is None:
            write_atomically(self.root / "digests" / file.key, f"{sha256} {size}")
        path = self._entries.path_of(fetch.name, file.name)
        return EntryFile(path, size, sha256, blob.stat().st_mtime_ns)

    def _published(self, file: RemoteFile, path: Path, before: tuple[str, int] | None) -> EntryFile | None:
        noted = self._note(file.key)
        # A URL may stand for other content tomorrow: only what was fetched since we began counts.
        fresh = noted is not None and (file.git_sha1 is not None or noted != before)
        sha256 = file.sha256 or (noted[0] if noted and fresh else None)
        if sha256 is None:
            return None
        state = state_of(self.root / "blobs" / sha256)
        return EntryFile(path, state.st_size, sha256, state.st_mtime_ns) if state is not None else None

    def _note(self, key: str) -> tuple[str, int] | None:
        """Return the SHA-256 noted for a file without one, and the time of the note."""
        path = self.root / "digests" / key
        words, state = (read_small(path) or "").split(), state_of(path)
        return (words[0], state.st_mtime_ns) if words and state is not None else None

    def _part(self, file: RemoteFile) -> Path:
        return self.root / "partial" / f"{file.key}.part"

    def _left(self, file: RemoteFile) -> int:
        return max((file.size or 0) - size_of(self._part(file)), 0)

    # Keeping house

    def keep(self, kept: Callable[[], Collection[str]]) -> None:
        """Have files of these digests stay in any case: `kept` is asked before anything is removed."""
        self._janitor.kept = kept

    def matching(self, text: str) -> list[Entry]:
        """Return the entries that an operator means by `text`: one by its name, or all of a model or repository."""
        entries = list(self._entries.all())
        exact = [entry for entry in entries if entry.name == text]
        return exact or [entry for entry in entries if entry.name.partition(":")[2].split("@")[0].split("#")[0] == text]

    def pin(self, entry: Entry, *, pinned: bool) -> None:
        """Never evict an entry, or let it be evicted again."""
        self._entries.pin(entry.name, pinned=pinned)

    def remove(self, entry: Entry) -> int:
        """Remove an entry with the blobs that no other names, and return the bytes given back.

        Raises InvalidRequest for one that belongs to a version in use.
        """
        if entry.digests & set(self._janitor.kept()):
            raise InvalidRequest(
                f"{entry.name} belongs to a version that is served or can be gone back to; move its alias first.",
                field="name",
            )
        return self._janitor.remove(entry)

    def discard(self, path: Path) -> None:
        """Remove the entry that `path` lies in, if it is one of this cache: its content must not stay."""
        for entry in self._entries.all():
            if path == entry.root or entry.root in path.parents:
                self._janitor.remove(entry)

    def prune(self, older_than_s: float = GARBAGE_AGE_S) -> Swept:
        """Sweep the files that belong to no entry and were not touched for `older_than_s`."""
        return self._janitor.sweep(older_than_s)

    def damaged(self, entry: Entry, *, removes: bool = False) -> list[str]:
        """Hash every file of an entry and return the names of the missing or wrong ones; with `removes` they go."""
        return [
            name
            for name, file in sorted(entry.files.items())
            if self._entries.recheck(file, lambda: None, thorough=True, removes=removes) is None
            or state_of(file.path) is None
        ]

    def used_bytes(self) -> int:
        """Bytes of all blobs and partial files."""
        return self._janitor.used_bytes()


def _covers(entry: Entry, files: Sequence[RemoteFile]) -> bool:
    """True if an entry has all of `files`, with the content that is known of them."""
    return all(file.name in entry.files and file.sha256 in {None, entry.files[file.name].sha256} for file in files)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
