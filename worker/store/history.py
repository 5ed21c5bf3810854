"""The history of versions on the volume: one file of lines that is only ever appended to, for every worker to read.

A change is there once its line is written whole and on the disk. Whoever reads afterwards, on whatever machine, opens
the file anew, and a network file system then asks its server: so no worker answers by an older state than the last
change that was answered for. Writers take turns by a lease, because appending is not atomic on every network volume.
"""

import errno
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.core.errors import SourceUnavailable
from worker.core.version import Change, change_line, parse_change
from worker.store.lease import Lease

_LOG = logging.getLogger("worker")
PATIENCE_S = 60.0
_POLL_S = 0.05
VOLUME_ID = "volume.id"
"""The file beside a history that tells its volume from others. A backup leaves it out: it would name two volumes."""


class HistoryFile:
    """The history at `path`. Safe for several threads, processes and machines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._changes: tuple[Change, ...] = ()
        self._offset, self._inode = 0, 0
        self.volume_id: str | None = None
        """What `identify` has read; the same for all who share this history."""

    def identify(self) -> None:
        """Read the id of the volume, made by whoever comes first. Blocking; where nobody may write there is none."""
        path = self._path.with_name(VOLUME_ID)
        with suppress(OSError, ValueError, SourceUnavailable):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._turn():
                    if not path.exists():
                        new = path.with_suffix(".tmp")
                        new.write_text(str(uuid.uuid4()))
                        new.replace(path)
            self.volume_id = str(uuid.UUID(path.read_text()))

    @property
    def last_read(self) -> tuple[Change, ...]:
        """The changes that were read last, without a look at the volume."""
        return self._changes

    def read(self) -> tuple[Change, ...]:
        """Return all changes in their order; the very same object while there is no further one. Blocking.

        Raises SourceUnavailable if they cannot be read, or were there before and are not any more: what is served
        would not be what the operator chose.
        """
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    state = os.fstat(file.fileno())
                    if state.st_ino != self._inode or state.st_size < self._offset:
                        self._changes, self._offset, self._inode = (), 0, state.st_ino
                    if state.st_size > self._offset:
                        file.seek(self._offset)
                        self._take(file.read())
            except FileNotFoundError:
                if self._changes:
                    raise _unreadable("it is gone") from None
            except OSError as error:
                raise _unreadable(error.strerror or type(error).__name__) from None
            return self._changes

    def change(self, decide: Callable[[tuple[Change, ...]], Sequence[Change]]) -> tuple[Change, ...]:
        """Append what `decide` makes of the present changes, in one step that nobody comes between; return all.

        Blocking. Raises what `decide` raises, and SourceUnavailable.
        """
        with self._turn():
            lines = b"".join(map(change_line, decide(self.read())))
            if lines:
                self._append(lines)
        return self.read()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with _writing(), Lease(self._path.with_name(f"{self._path.name}.lease")) as lease:
            ends = time.monotonic() + PATIENCE_S
            while not lease.acquire():
                if time.monotonic() > ends:
                    raise SourceUnavailable("Another worker is changing the history of versions; try again.")
                time.sleep(_POLL_S)
            yield

    def _append(self, lines: bytes) -> None:
        with _writing():
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":  # what a writer that was killed left behind
                    lines = b"\n" + lines
                if os.write(descriptor, lines) < len(lines):
                    with suppress(OSError):
                        os.ftruncate(descriptor, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _take(self, data: bytes) -> None:
        """Read further lines; one without its end is not there yet, and one that was torn is left out."""
        whole, _, _ = data.rpartition(b"\n")
        if not whole:
            return
        self._offset += len(whole) + 1
        added = []
        for line in whole.split(b"\n"):
            try:
                added.append(parse_change(line))
            except ValueError:
                _LOG.warning("a line of the history of versions cannot be read and is left out")
        self._changes = (*self._changes, *added)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"The history of versions cannot be written ({error.strerror}), so nothing was changed; check the volume."
        ) from None


def _unreadable(reason: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"The history of versions on the volume cannot be read ({reason}), so it is not known which version to serve; "
        "check the volume.",
        field="model",
    )
