"""Pairs on the volume: lines that are only ever appended to, and images as long as the operator lets them lie there.

Each worker has its own file of lines for the day, so that workers on one volume cannot tear each other's. An image is
there until somebody chose, until newer ones take its room, or until the operator allows none any more.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from worker.core.errors import SourceUnavailable
from worker.core.pair import Choice, Pair, parse_line

_LOG = logging.getLogger("worker")
_ID = re.compile(r"[0-9a-f]{32}")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class PairFolder:
    """The pairs in `folder`. `max_bytes` bounds the images of all workers together; with 0 none are kept. Blocking."""

    def __init__(self, folder: Path, worker: str, max_bytes: int) -> None:
        self._lines = folder / "lines"
        self._images = folder / "images"
        self._worker = re.sub(r"[^A-Za-z0-9_.-]", "_", worker)[:80]
        self.max_bytes = max_bytes

    def add(self, line: Pair | Choice) -> None:
        """Append a line. Raises SourceUnavailable if it could not be written whole."""
        data = line.model_dump_json(exclude_none=True).encode() + b"\n"
        path = self._lines / f"{datetime.now(UTC).date().isoformat()}-{self._worker}.jsonl"
        try:
            self._lines.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"  # what a full disk left behind
                data = b"\n" + data if torn else data
                written = os.write(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unwritten(error.strerror or type(error).__name__) from None
        if written < len(data):
            raise _unwritten("the disk is full")

    def lines(self, since: str = "") -> Iterator[Pair | Choice]:
        """Yield the lines of all workers from day `since` on, the oldest day first; unreadable ones are left out."""
        for path in sorted(self._lines.glob("*.jsonl")):
            day = _DAY.match(path.name)
            if day is None or day.group() < since:
                continue
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield parse_line(line)
                    except ValueError:
                        continue

    def keep(self, pair: str, images: Mapping[str, bytes]) -> None:
        """Keep a pair's images, by their versions, if any may be; older ones make room. A full disk keeps none."""
        if sum(map(len, images.values())) > self.max_bytes:
            return
        try:
            self._images.mkdir(parents=True, exist_ok=True, mode=0o700)
            for version, data in images.items():
                descriptor = os.open(self._path(pair, version), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
        except OSError as error:
            self.drop(pair)
            _LOG.warning("the images of a pair are not kept: %s", error.strerror)
        self.trim()

    def images(self, pair: Pair) -> tuple[bytes, bytes] | None:
        """Return the images of the first and the second version; None if they are not both there, or may not be."""
        if not self.max_bytes:
            return None
        try:
            first, second = (self._path(pair.id, version).read_bytes() for version in (pair.first, pair.second))
        except OSError:
            return None
        return first, second

    def kept(self) -> frozenset[str]:
        """Return the ids of the pairs of which an image lies here."""
        return frozenset(path.name[:32] for path in self._files())

    def drop(self, pair: str) -> None:
        """Remove a pair's images."""
        for path in self._images.glob(f"{pair}.*") if _ID.fullmatch(pair) else ():
            path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove the images of the oldest pairs until the rest has room; all of them where none may lie here."""
        sizes: dict[str, tuple[float, int]] = {}
        for path in self._files():
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            at, size = sizes.get(path.name[:32], (state.st_mtime, 0))
            sizes[path.name[:32]] = (at, size + state.st_size)
        total = sum(size for _, size in sizes.values())
        for pair in sorted(sizes, key=lambda name: sizes[name]):
            if total <= self.max_bytes:
                return
            self.drop(pair)
            total -= sizes[pair][1]

    def _files(self) -> list[Path]:
        return [path for path in self._images.glob("*.webp") if _ID.fullmatch(path.name[:32])]

    def _path(self, pair: str, version: str) -> Path:
        return self._images / f"{pair}.{version}.webp"


def _unwritten(reason: str) -> SourceUnavailable:
    return SourceUnavailable(f"The pairs on the volume cannot be written ({reason}); check the volume.")
