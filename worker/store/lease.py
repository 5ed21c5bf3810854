"""The right to fetch one file, which passes to another worker when its holder dies, on whatever host.

A lease is a small file that names its holder. The holder moves its modification time every `beat_s`. A worker that
wants it watches: a lease that has not moved for `stale_s` of the watcher's own clock is dead and is taken over. So no
two clocks are compared, and no lock of the operating system is used: flock and fcntl do nothing on some network file
systems, and hang on others.

Two workers can believe in the same lease for a moment (one was suspended, or both took it over at once). `check` ends
that within a beat, and until then nothing goes wrong: they write the same bytes at the same places of a partial file,
and publishing is a rename of content that was verified.
"""

import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.store.places import make_way, state_of

BEAT_S = 2.0
STALE_S = 12.0
_SETTLE_S = 0.2  # two who take over at once both look again after this: the last to write has it

Pulse = tuple[bytes, int]


class LeaseLost(Exception):
    """The loss of a lease to another worker: the file that it protects must not be written any more."""


class Lease:
    """One holder's view of the lease file at `path`. Not shared between threads; leaving the `with` block releases."""

    def __init__(self, path: Path, *, beat_s: float = BEAT_S, stale_s: float = STALE_S) -> None:
        self._path = path
        self._beat_s, self._stale_s = beat_s, stale_s
        self._id = uuid.uuid4().hex.encode()
        self._watched: Pulse | None = None
        self._watched_since = 0.0
        self._moved_at = 0.0
        self._lost = False
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> bool:
        """Try to become the holder. Call it again until it returns True: a dead lease shows only over time."""
        if not self._create() and not (self._is_dead() and self._take_over()):
            return False
        self._lost, self._moved_at = False, time.monotonic()
        self._released.clear()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()
        return True

    def check(self, *, look: bool = False) -> None:
        """Raise LeaseLost when another worker has it. Reads the file only with `look`, or after missed heartbeats."""
        late = time.monotonic() - self._moved_at > 2 * self._beat_s  # this process was suspended, or starved
        if self._lost or ((look or late) and not self._is_mine()):
            self._lost = True
            raise LeaseLost

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        if self._heart is None:
            return
        self._released.set()
        self._heart.join()
        self._heart = None
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._path.open("xb") as file:
                file.write(self._id)
        except FileExistsError:
            make_way(self._path)  # what is no file has no holder; the next attempt makes one
            return False
        return True

    def _is_dead(self) -> bool:
        pulse, now = self._pulse(), time.monotonic()
        if pulse is None or pulse != self._watched:
            self._watched, self._watched_since = pulse, now
            return False
        return now - self._watched_since >= self._stale_s

    def _take_over(self) -> bool:
        mine = self._path.with_name(f"{self._path.name}.{self._id.decode()}")
        mine.write_bytes(self._id)
        mine.replace(self._path)
        time.sleep(_SETTLE_S)
        self._watched = None
        return self._is_mine()

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s):
            try:
                if not self._is_mine():
                    self._lost = True
                    return
                os.utime(self._path)  # moves the time and leaves the content: it cannot undo a take-over
                self._moved_at = time.monotonic()
            except OSError:
                continue  # the volume is away for a moment; `check` looks again when beats are missing

    def _is_mine(self) -> bool:
        pulse = self._pulse()
        return pulse is not None and pulse[0] == self._id

    def _pulse(self) -> Pulse | None:
        """Return holder and time. The file is opened anew: NFS answers a bare stat from memory, for up to a minute."""
        if state_of(self._path) is None:
            return None
        try:
            with self._path.open("rb") as file:
                return file.read(64), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
