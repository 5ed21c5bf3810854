"""Work in numbers that are the same on every machine: calls made and bytes read, where seconds would be luck.

How long the same work takes is measured by `make bench`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self


class Count:
    """Counts the calls that this thread makes in its context, of functions in Python and in C."""

    def __init__(self) -> None:
        self.calls = 0

    def listen(self) -> None:
        """Count what this thread does from now on, for good."""
        sys.setprofile(self._heard)

    def __enter__(self) -> Self:
        self._before = sys.getprofile()
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sys.setprofile(self._before)

    def _heard(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


def calls_of(work: Callable[[], object]) -> int:
    """How many calls `work` makes in this thread, of functions in Python and in C."""
    with Count() as count:
        work()
    return count.calls


def bytes_read() -> int:
    """How many bytes this process has read so far, from files and sockets."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
