"""The slow reading back of the volume's own files: damage that keeps size and time is found, and healed at next use."""

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from worker.store.lease import Lease, LeaseLost
from worker.store.places import clear_away, make_way, state_of

_LOG = logging.getLogger("worker")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 2**20
EVERY_S = 7 * 24 * 3600.0
"""How often each file is read back."""
_PAUSE_S = 300.0


class Rehash:
    """Reads the blobs of one cache folder back, the longest unread first. One worker of a volume does it at a time.

    `bytes_per_s` is how fast it may read. When a blob was last found right is the time of its mark below `checked`, or
    its own, at which it was downloaded and verified.
    """

    def __init__(self, root: Path, bytes_per_s: float, every_s: float = EVERY_S) -> None:
        self._root = root
        self._bytes_per_s = bytes_per_s
        self._every_s = every_s

    def run(self, ended: threading.Event) -> None:
        """Read back whatever is due, until `ended`. Blocking, for a thread of its own, of the lowest priority."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not ended.wait(_PAUSE_S):
            try:
                self.round(ended.wait)
            except OSError as error:
                _LOG.warning("the volume's files are not read back: %s", error.strerror or type(error).__name__)

    def round(self, wait: Callable[[float], object] = time.sleep) -> list[str]:
        """Read back every blob that is due; remove the wrong ones and return their digests. `wait` true ends it."""
        damaged: list[str] = []
        if not self._due():
            return damaged
        with Lease(self._root / "leases" / "rehash") as lease:
            if not lease.acquire():
                return damaged  # another worker is at it
            with contextlib.suppress(LeaseLost):
                for blob in self._due():
                    lease.check()
                    right = self._is_right(blob, wait)
                    if right is None:
                        break
                    if right:
                        self._mark(blob)
                    else:
                        _LOG.warning("a file on the volume is damaged (%s…); it is fetched anew", blob.name[:12])
                        clear_away(blob)
                        damaged.append(blob.name)
        return damaged

    def _due(self) -> list[Path]:
        """Return the blobs that were not read for `every_s`, the longest unread first."""
        folder, limit = self._root / "blobs", time.time() - self._every_s
        blobs = [path for path in folder.iterdir() if _SHA256.fullmatch(path.name)] if folder.is_dir() else []
        read_at = {path: self._read_at(path) for path in blobs}
        return sorted((path for path, at in read_at.items() if at < limit), key=lambda path: read_at[path])

    def _read_at(self, blob: Path) -> float:
        states = (state_of(blob), state_of(self._root / "checked" / blob.name))
        return max((state.st_mtime for state in states if state is not None), default=0.0)

    def _is_right(self, blob: Path, wait: Callable[[float], object]) -> bool | None:
        """Return whether the content is the blob's; None where it has to end before that is known."""
        if state_of(blob) is None:
            return False
        digest = hashlib.sha256()
        with blob.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if wait(len(block) / self._bytes_per_s):
                    return None
        return digest.hexdigest() == blob.name

    def _mark(self, blob: Path) -> None:
        mark = self._root / "checked" / blob.name
        mark.parent.mkdir(parents=True, exist_ok=True)
        make_way(mark)
        mark.touch()
