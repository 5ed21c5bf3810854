"""The terminal of a command: what it prints, and the line that shows what it is at. Imports nothing that takes long."""

import json
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.core.result import Progress

_FRAMES, _PLAIN_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_FRAME_S = 0.1
_BAR = 20  # characters
_PHASES = {
    "download": "downloading",
    "load": "loading",
    "inference": "drawing",
    "encode": "encoding",
    "train": "training",
}


class Failure(Exception):
    """The end of a command: a sentence for people, and the same for programs where there is more to say."""

    def __init__(self, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.body = dict(body) if body is not None else {"error": message}


class Terminal:
    """Results go to stdout, all else to stderr. The line of progress is shown at a terminal alone, and not if quiet.

    As a context manager it shows the line while its block lasts. Any thread may report progress.
    """

    def __init__(self, prog: str, *, quiet: bool = False) -> None:
        self.prog = prog
        self._quiet = quiet
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._text, self._began = "starting", time.monotonic()
        self._downloads: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Terminal":
        if self._live:
            threading.Thread(target=self._spin, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.rest()

    def rest(self) -> None:
        """Take the line away for good: what follows is the result, or somebody else's output."""
        with self._lock:
            if self._live and not self._ended.is_set():
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._ended.set()

    def show(self, progress: "Progress") -> None:
        """Show progress from now on."""
        step, total, unit = progress.step, progress.total, ""
        if progress.phase == "download":  # several files at once are one download
            self._downloads[progress.message] = (step, total)
            sums = [sum(numbers) // 2**20 for numbers in zip(*self._downloads.values(), strict=True)]
            step, total, unit = sums[0], sums[1], " MiB"
        filled = min(_BAR, _BAR * step // total) if total else 0
        count = f" [{'=' * filled}{' ' * (_BAR - filled)}] {step:,}/{total:,}{unit}" if total else ""
        self._text = f"{_PHASES[progress.phase]} {progress.message}".rstrip() + count

    def print(self, text: str) -> None:
        """Print a line of the result."""
        self.rest()
        print(_writable(text, sys.stdout.encoding))  # noqa: T201

    def json(self, value: object) -> None:
        """Print the result for programs."""
        self.print(json.dumps(value, indent=2, ensure_ascii=False))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, beside: bool = False) -> None:
        """Print columns, each as wide as its widest cell: no cell is cut, whatever the terminal's width.

        A table beside the result goes where warnings go, and not if quiet.
        """
        if beside and self._quiet:
            return
        lines = [head, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        for line in lines:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            (self._say if beside else self.print)(text)

    def warn(self, text: str) -> None:
        """Say what does not keep the command from its result, unless it shall be quiet."""
        if not self._quiet:
            self._say(f"warning: {text}")

    def fail(self, text: str) -> None:
        """Say why there is no result."""
        self._say(f"error: {text}")

    def _say(self, text: str) -> None:
        self.rest()
        print(_writable(text, sys.stderr.encoding), file=sys.stderr)  # noqa: T201

    def _spin(self) -> None:
        unicode = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
        frames = _FRAMES if unicode else _PLAIN_FRAMES
        while not self._ended.wait(_FRAME_S):
            seconds = int(time.monotonic() - self._began)
            frame = frames[int(time.monotonic() / _FRAME_S) % len(frames)]
            line = f"{frame} {self._text} {seconds // 60}:{seconds % 60:02d}"
            with self._lock:
                if not self._ended.is_set():
                    width = shutil.get_terminal_size().columns - 1  # a longer line would not be erased whole
                    sys.stderr.write(f"\r\x1b[K{_writable(line[:width], sys.stderr.encoding)}")
                    sys.stderr.flush()


def _writable(text: str, encoding: str | None) -> str:
    """Return `text` without what would command the terminal, and without what its encoding lacks."""
    text = "".join(
        "?" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character for character in text
    )
    return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")
