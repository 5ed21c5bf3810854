"""A large file over several connections at once, for servers that give each connection a share of the line only.

What is asked for ahead lies in nameless files beside the part until its turn: the part itself grows from its beginning
as it does over one connection, so that any worker can go on with it after a kill.
"""

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

PIECE_BYTES = 16 * 2**20
"""Bytes of one request; less than four of these are fetched over one connection."""
A_FILE = 10
"""Connections for one file, the first included."""
IN_ALL = 24
"""Connections beside the first ones, of all files that a process fetches at once."""
_AHEAD = 2  # pieces that may be whole and wait for the one before
_LOOK_EVERY_S = 0.1

Receive = Callable[[int, int, IO[bytes], threading.Event], None]
"""Fetches the bytes of a range into a file; it ends soon once the event is set, and raises what broke off."""


class Lanes:
    """The connections that a cache may open beside the first one of each file."""

    def __init__(self, a_file: int = A_FILE, in_all: int = IN_ALL, piece_bytes: int = PIECE_BYTES) -> None:
        self.a_file, self.piece_bytes = a_file, piece_bytes
        self._free = in_all
        self._lock = threading.Lock()

    def suits(self, status: int, headers: Mapping[str, str], left: int) -> bool:
        """True if a server answers ranges of a version that it names for certain, and much of the file is left."""
        etag = headers.get("etag", "")
        ranged = status == 206 or headers.get("accept-ranges", "").strip().lower() == "bytes"
        return ranged and etag.startswith('"') and "content-encoding" not in headers and left >= 4 * self.piece_bytes

    @contextmanager
    def taken(self, most: int) -> Iterator[int]:
        """Take up to `most` connections, as many as are free, and give them back in the end."""
        with self._lock:
            number = min(most, self._free)
            self._free -= number
        try:
            yield number
        finally:
            with self._lock:
                self._free += number


@dataclass(slots=True)
class _Piece:
    """A range on its way."""

    start: int
    end: int
    file: IO[bytes]
    over: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None


@contextmanager
def pieces(
    receive: Receive, folder: Path, start: int, end: int, size: int, lanes: int, check: Callable[[], None]
) -> Iterator[Iterator[IO[bytes]]]:
    """Fetch bytes `start` to `end` in ranges of `size`, `lanes` at a time; yields the files of the ranges, in order.

    `check` is called while the next is waited for, and may raise. What is under way when this ends is given up.
    """
    given_up = threading.Event()
    begun: deque[_Piece] = deque()
    ahead = threading.Semaphore(lanes)

    def work(piece: _Piece) -> None:
        try:
            if not given_up.is_set():
                receive(piece.start, piece.end, piece.file, given_up)
        except BaseException as error:
            piece.failure = error
        finally:
            piece.over.set()
            ahead.release()
            if given_up.is_set():
                piece.file.close()

    def begin() -> None:
        nonlocal start
        while start < end and len(begun) < lanes + _AHEAD and ahead.acquire(blocking=False):
            piece = _Piece(start, min(start + size, end), tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            begun.append(piece)
            # Daemons: a read that hangs must not hold up the end of the process.
            threading.Thread(target=copy_context().run, args=(work, piece), name="download", daemon=True).start()
            start = piece.end

    def in_order() -> Iterator[IO[bytes]]:
        begin()
        while begun:
            piece = begun[0]
            while not piece.over.wait(_LOOK_EVERY_S):
                check()
                begin()
            if piece.failure is not None:
                raise piece.failure
            begun.popleft()
            begin()
            piece.file.seek(0)
            with piece.file:
                yield piece.file

    begin()
    try:
        yield in_order()
    finally:
        given_up.set()
        for piece in begun:
            if piece.over.is_set():
                with suppress(OSError):
                    piece.file.close()
