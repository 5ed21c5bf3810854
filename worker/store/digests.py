"""Digests of files that other tools keep: computed once before first use, then believed while the file is untouched.

A file is untouched while its inode, size and time are the same. What was computed is noted below the cache's `foreign`,
so that the next worker on the volume need not read it again.
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from worker.core.turn import StopSignal
from worker.store.entries import write_atomically
from worker.store.meter import run_all
from worker.store.places import read_small, state_of
from worker.store.transfer import digest_of

_LOG = logging.getLogger("worker")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_AT_ONCE = 4


class ForeignDigests:
    """Holds files of other tools against the digests that are known of them. `folder` is where it notes what it read.

    With `trusts` nothing is read, and every file counts as right.
    """

    def __init__(self, folder: Path, *, trusts: bool = False) -> None:
        self._folder = folder
        self._trusts = trusts
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def are_right(self, files: Iterable[tuple[Path, str | None]], stop: StopSignal) -> bool:
        """True if each file has its digest, an SHA-256 or git's; None is none. Blocking; several are read at a time.

        Raises JobTimeout, JobCancelled.
        """
        if self._trusts:
            return True
        wrong: list[Path] = []

        def look(path: Path, digest: str) -> None:
            if self._digest(path, digest, stop.check) != digest:
                wrong.append(path)

        run_all([partial(look, path, digest) for path, digest in files if digest], stop, _AT_ONCE)
        for path in wrong:
            _LOG.warning("%s in another tool's cache is damaged; the model is fetched anew", path.name[:120])
        return not wrong

    def sha256_of(self, path: Path, check: Callable[[], None]) -> str:
        """Return the SHA-256 of a file that is there. Blocking; `check` may raise meanwhile."""
        digest = self._digest(path, "0" * 64, check)
        if digest is None:
            raise FileNotFoundError(path)
        return digest

    def _digest(self, path: Path, like: str, check: Callable[[], None]) -> str | None:
        """Return the file's digest of the same kind as `like`."""
        state = state_of(path)
        if state is None:
            return None
        kind = "sha256" if _SHA256.fullmatch(like) else "git"
        identity = f"{path.resolve()} {state.st_ino} {state.st_size} {state.st_mtime_ns} {kind}"
        key = hashlib.sha256(os.fsencode(identity)).hexdigest()
        with self._lock:
            known = self._known.get(key) or (read_small(self._folder / key) or "").strip()
        if not known:
            blob = hashlib.sha1(b"blob %d\0" % state.st_size, usedforsecurity=False)
            known = digest_of(path, hashlib.sha256() if kind == "sha256" else blob, check)
            with contextlib.suppress(OSError):  # a volume that is full or read-only: it is read again next time
                write_atomically(self._folder / key, known)
        with self._lock:
            self._known[key] = known
        return known


def digest_by_name(path: Path) -> str | None:
    """Return the digest that a file of the Hub's cache layout is named by, where it is a link to such a blob."""
    target = path.resolve()
    named = target.parent.name == "blobs" and (_SHA256.fullmatch(target.name) or _GIT_SHA1.fullmatch(target.name))
    return target.name if named else None
