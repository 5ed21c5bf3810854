"""The bytes of images that were fetched for callers: bounded in all and for each of them, while any of them are here.

A link of a hundred characters may bring thirty megabytes, and stays with its job until that is generated. What comes by
links is counted from its first byte until nobody has it any more.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from worker.core.errors import Overloaded
from worker.core.turn import current

MAX_BYTES = 512 * 2**20
_SHARE = 0.75  # of all, for one caller
_RETRY_AFTER_S = 5


class FetchedBytes:
    """The books. `least` bytes are let in even of a caller who has more than a share. Safe to use from any thread."""

    def __init__(self, max_bytes: int = MAX_BYTES, least: int = 0) -> None:
        self._max = max(max_bytes, least)
        self._max_caller = max(int(max_bytes * _SHARE), least)
        self._callers: dict[str | None, int] = {}
        self._lock = threading.RLock()  # a body may go at any moment, also within these lines

    @property
    def bytes(self) -> int:
        """The bytes that are here."""
        with self._lock:
            return sum(self._callers.values())

    @contextmanager
    def receiving(self) -> Iterator["Receipt"]:
        """Count what comes for the caller whose turn it is; at the end, what was not made a body is gone."""
        receipt = Receipt(self, current().caller)
        try:
            yield receipt
        finally:
            receipt.close()

    def move(self, caller: str | None, more: int) -> None:
        """Note so many bytes more, or fewer. Raises Overloaded if there is no room for more."""
        with self._lock:
            held = self._callers.get(caller, 0)
            if more > 0:
                # A caller without a name is one among many.
                self._check(caller is not None and held + more > self._max_caller, "your jobs", self._max_caller)
                self._check(sum(self._callers.values()) + more > self._max, "all jobs", self._max)
            self._callers[caller] = held + more
            if not self._callers[caller]:
                del self._callers[caller]

    @staticmethod
    def _check(is_full: bool, whose: str, limit: int) -> None:
        if is_full:
            raise Overloaded(
                f"The images that the links of {whose} have brought take {limit / 2**20:g} MB, which is all that is "
                f"kept at once (MAX_QUEUED_MB); come again in {_RETRY_AFTER_S} seconds.",
                details={"retry_after_s": _RETRY_AFTER_S},
            )


class Receipt:
    """What comes on one connection."""

    def __init__(self, books: FetchedBytes, caller: str | None) -> None:
        self._books = books
        self._caller = caller
        self._count = 0

    def add(self, count: int) -> None:
        """Count so many bytes more. Raises Overloaded."""
        self._books.move(self._caller, count)
        self._count += count

    def body(self, data: bytes | bytearray) -> "Fetched":
        """Return all that came, which is counted until nobody has it any more."""
        fetched = Fetched(data)
        fetched.hold(self._books, self._caller)
        self._count -= len(data)
        return fetched

    def close(self) -> None:
        """Count no more what did not become a body."""
        self._books.move(self._caller, -self._count)
        self._count = 0


class Fetched(bytes):
    """A body. It tells the books when it goes: bytes take no weak reference that could do so."""

    def hold(self, books: FetchedBytes, caller: str | None) -> None:
        """Have these books know of it."""
        self._books, self._caller = books, caller

    def __del__(self) -> None:
        if hasattr(self, "_books"):
            self._books.move(self._caller, -len(self))
