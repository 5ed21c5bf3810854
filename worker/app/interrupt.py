"""Ctrl-C at a terminal, while modules are imported too: the process ends as by the signal itself, without a word."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end_quietly_on_interrupt() -> None:
    """End this process on SIGINT without a traceback. What somebody else chose stays, and servers set their own."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised_interrupts() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt in here, where there is something to say at the end. In the main thread."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    # Nothing is tidied up: what is half done stands under a name of its own until it is whole.
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\r\x1b[K")  # the line that shows progress
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
