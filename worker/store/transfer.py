"""One file over HTTP onto the disk: resumed where it broke off, checked against its digest, ended by the deadline."""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from worker.core.errors import AccessDenied, CorruptFile, DiskFull, SourceUnavailable, WorkerError
from worker.core.result import Emit
from worker.core.turn import StopSignal
from worker.net.client import Client, Response
from worker.net.guard import RefusedUrl
from worker.store.lanes import Lanes, pieces

_BLOCK = 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its source describes it before it is fetched.

    `name` is its path in its entry, "unet/config.json" say. Size (bytes) and digests (lower-case hex) must be true of
    the file that arrives, if they are known. `git_sha1` is git's blob id, which the Hub gives of small files.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def key(self) -> str:
        """The part that two files of the same content share, as far as known: a name for leases and partial files."""
        if self.sha256:
            return self.sha256
        return f"git-{self.git_sha1}" if self.git_sha1 else f"url-{hashlib.sha256(self.url.encode()).hexdigest()}"


# Turns a response that is not the file into an error: the file, the status (200 for an HTML page in place of
# weights), and the headers in lower case.
Refused = Callable[[RemoteFile, int, Mapping[str, str]], WorkerError]


@dataclass(frozen=True, slots=True)
class Fetch:
    """An entry to be fetched for a job; `label` is its name in progress and errors."""

    name: str  # of the entry
    files: Sequence[RemoteFile]
    client: Client
    label: str
    emit: Emit
    stop: StopSignal
    refused: Refused
    details: Mapping[str, JsonValue] = field(default_factory=dict)  # for the entry's manifest


@dataclass(frozen=True, slots=True)
class Patience:
    """How a server is asked: the limits of waiting, in seconds, and the connections that it is asked over.

    `attempts` are those in a row that bring not one byte.
    """

    attempts: int = 3
    backoff_s: float = 0.5
    max_wait_s: float = 10.0
    silence_s: float = 10.0  # without any byte
    lanes: Lanes = field(default_factory=Lanes)


class _BrokenOff(Exception):
    """A connection or a server that failed; `wait_s` is the pause that the server asked for."""

    def __init__(self, wait_s: float | None = None) -> None:
        super().__init__()
        self.wait_s = wait_s


class _Damaged(Exception):
    """A file that does not match its announced size or digest."""


class Download:
    """One file on its way to `part`, a file that another attempt, in any process, may have begun.

    `check` is called for every piece that arrives and raises to end the download, so that a server which sends one
    byte a second ends with the deadline too. `advance` gets the bytes on disk, those just received, and the size.
    """

    def __init__(
        self,
        fetch: Fetch,
        file: RemoteFile,
        part: Path,
        *,
        check: Callable[[], None],
        advance: Callable[[int, int, int | None], None],
        patience: Patience,
    ) -> None:
        self._file, self._part, self._client = file, part, fetch.client
        self._label, self._refused = fetch.label, fetch.refused
        self._check, self._advance = check, advance
        self._patience = patience
        self._lanes = patience.lanes
        self._beside = self._lanes.a_file - 1  # connections beside the first; fewer once a server has refused some
        self._etag_note = part.with_suffix(".etag")
        self._hash = hashlib.sha256()
        self._hashed = 0  # bytes of the part that went through `_hash`
        self._total = file.size

    def run(self) -> tuple[str, int]:
        """Fetch the missing bytes; return SHA-256 and size. Raises CorruptFile, DiskFull, SourceUnavailable …"""
        for _ in range(2):
            try:
                with disk_errors(self._label):
                    self._receive()
                    return self._verified()
            except _Damaged:
                self.discard()
            except DiskFull:
                self.discard()  # a part that filled the volume up is in everybody's way
                raise
        raise CorruptFile(
            f"{self._file.name} of {self._label} arrived damaged twice and was removed; send the job again.",
            field="model",
        )

    def discard(self) -> None:
        """Remove the received bytes. The next attempt makes a new file: a suspended writer may still have this one."""
        self._part.unlink(missing_ok=True)
        self._etag_note.unlink(missing_ok=True)
        self._hash, self._hashed = hashlib.sha256(), 0
        self._total = self._file.size

    def _receive(self) -> None:
        failures, before = 0, self._have()
        while not self._is_whole():
            try:
                self._attempt(self._resumable())
                return
            except _BrokenOff as broken:
                have = self._have()
                failures = 0 if have > before else failures + 1
                before = have
                if failures >= self._patience.attempts:
                    raise SourceUnavailable(
                        f"The source did not deliver {self._file.name} of {self._label}; "
                        "send the job again in a minute.",
                        field="model",
                    ) from None
                self._pause(broken.wait_s if broken.wait_s is not None else self._patience.backoff_s * failures)

    def _attempt(self, start: int) -> None:
        try:
            self._ask(start)
        except RefusedUrl as error:
            if not self._have():
                self.discard()
            raise AccessDenied(f"{self._file.name} of {self._label} is not fetched: {error}.", field="model") from None

    def _ask(self, start: int) -> None:
        etag = self._etag_note.read_text() if start and not self._is_addressed else None
        try:
            response = self._client.get(self._file.url, start=start, etag=etag, timeout_s=self._patience.silence_s)
        except RefusedUrl:
            raise
        except OSError:
            raise _BrokenOff from None
        with response:
            if response.status == 416 and response.headers.get("content-range", "") == f"bytes */{start}":
                self._total = start  # all of it lies here; the digest will tell
                return
            self._take(response, self._accept(response, start))
        if self._total is not None and self._have() < self._total:
            raise _BrokenOff

    def _accept(self, response: Response, start: int) -> int:
        """Return the offset at which the body begins. Raises the source's error for a refusal."""
        status, headers = response.status, response.headers
        if status in _BUSY:
            retry_after = headers.get("retry-after", "")
            raise _BrokenOff(min(float(retry_after), self._patience.max_wait_s) if retry_after.isdecimal() else None)
        if status == 416:
            self.discard()  # there is less of it than lies here already, so it is another file
            raise _BrokenOff
        if status not in {200, 206} or headers.get("content-type", "").startswith("text/html"):
            raise self._refused(self._file, status, headers)
        offset, total = 0, headers.get("content-length", "")
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if match is None or match[1] is None or int(match[1]) != start:
                raise _Damaged
            offset, total = start, match[2]
        elif start:
            self.discard()
        self._note(headers, total)
        return offset

    def _note(self, headers: Mapping[str, str], total: str) -> None:
        """Remember the size of the whole file that the server names, and the ETag if no digest is known."""
        if total.isdecimal() and "content-encoding" not in headers:
            if self._total is not None and int(total) != self._total:
                raise _Damaged
            self._total = int(total)
        etag = headers.get("etag", "")
        if etag and not etag.startswith("W/") and not self._is_addressed:
            self._etag_note.write_text(etag)

    def _take(self, response: Response, offset: int) -> None:
        """Write the body, which begins at `offset`: over this connection alone, or with others beside it."""
        self._check()  # a worker that was suspended until now may have lost the part to another
        total = self._total
        with self._part.open("r+b" if offset else "wb") as out, self._lanes.taken(self._beside) as beside:
            out.seek(offset)
            if not beside or total is None or not self._lanes.suits(response.status, response.headers, total - offset):
                self._write(out, lambda: _read(response), offset, response.headers)
            else:
                self._take_beside(response, out, offset, beside, total)
            os.fsync(out.fileno())

    def _take_beside(self, response: Response, out: IO[bytes], offset: int, beside: int, total: int) -> None:
        """Write the first piece over this connection, and the others in order as they come over those beside it."""
        size = self._lanes.piece_bytes
        receive = partial(self._receive_piece, etag=response.headers["etag"])
        try:
            with pieces(receive, self._part.parent, offset + size, total, size, beside, self._check) as others:
                first = self._write(out, _Limited(response, size).read, offset, response.headers)
                response.close()
                if first != offset + size:
                    raise _BrokenOff
                offset = first
                for piece in others:
                    offset = self._write(out, partial(piece.read, _BLOCK), offset, response.headers)
        except _BrokenOff:
            self._beside //= 2  # the server may allow fewer connections
            raise

    def _write(self, out: IO[bytes], read: Callable[[], bytes], offset: int, headers: Mapping[str, str]) -> int:
        """Write what `read` gives, from `offset` on, and return where it ends."""
        while block := read():
            self._check()
            if offset == 0 and block.lstrip()[:16].lower().startswith(_PAGE):
                self.discard()
                raise self._refused(self._file, 200, headers)
            if self._hashed == offset:
                self._hash.update(block)
                self._hashed += len(block)
            out.write(block)
            out.flush()  # the bytes in this process's memory are lost when it is killed
            offset += len(block)
            if self._total is not None and offset > self._total:
                raise _Damaged
            self._advance(offset, len(block), self._total)
        return offset

    def _receive_piece(self, start: int, end: int, out: IO[bytes], given_up: threading.Event, *, etag: str) -> None:
        """Fetch a range over a connection of its own; of the same version, or it breaks off."""
        silence_s = self._patience.silence_s
        try:
            with self._client.get(self._file.url, start=start, end=end, etag=etag, timeout_s=silence_s) as response:
                content_range = response.headers.get("content-range", "")
                if response.status == 200:
                    self._beside = 0  # it says that it takes ranges, and takes none; or the file is another by now
                if response.status != 206 or content_range != f"bytes {start}-{end - 1}/{self._total}":
                    raise _BrokenOff
                ends = _Limited(response, end - start)
                while not given_up.is_set() and (block := ends.read()):
                    out.write(block)
            if ends.left and not given_up.is_set():
                raise _BrokenOff
            out.flush()
        except RefusedUrl:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise _BrokenOff from None

    def _verified(self) -> tuple[str, int]:
        size = self._have()
        if self._file.size is not None and size != self._file.size:
            raise _Damaged
        # Bytes of another attempt are read back; those of this one went through the digest on their way.
        fresh = self._hashed == size
        sha256 = self._hash.hexdigest() if fresh else digest_of(self._part, hashlib.sha256(), self._check)
        if self._file.sha256 and sha256 != self._file.sha256:
            raise _Damaged
        if self._file.git_sha1:
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            if digest_of(self._part, blob, self._check) != self._file.git_sha1:
                raise _Damaged
        self._etag_note.unlink(missing_ok=True)
        return sha256, size

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(remaining, 0.1))

    @property
    def _is_addressed(self) -> bool:
        """True if a digest tells that the parts belong together; else only the server's ETag can."""
        return bool(self._file.sha256 or self._file.git_sha1)

    def _resumable(self) -> int:
        have = self._have()
        if have and not self._is_addressed and not self._etag_note.is_file():
            self.discard()
            return 0
        if self._file.size is not None and have > self._file.size:
            self.discard()
            return 0
        return have

    def _is_whole(self) -> bool:
        if self._file.size == 0:
            self._part.touch()
        return self._file.size is not None and self._part.is_file() and self._have() == self._file.size

    def _have(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0


class _Limited:
    """The first bytes of a body, and no more."""

    def __init__(self, response: Response, left: int) -> None:
        self._response, self.left = response, left

    def read(self) -> bytes:
        """Return what has come, up to a block; b"" at the end."""
        block = _read(self._response, min(_BLOCK, self.left)) if self.left else b""
        self.left -= len(block)
        return block


@contextmanager
def disk_errors(label: str) -> Iterator[None]:
    """Turn the volume's refusals into one sentence, while `label` is fetched."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"The volume ran full while {label} was fetched; use a larger one, or remove models with "
                "`python -m worker cache`.",
                field="model",
            ) from None
        raise SourceUnavailable(
            f"The volume cannot be written, so {label} was not fetched; check its mount.", field="model"
        ) from None


def _read(response: Response, size: int = _BLOCK) -> bytes:
    try:
        return response.read(size)
    except RefusedUrl:
        raise
    except OSError:
        raise _BrokenOff from None


def digest_of(path: Path, digest: "hashlib._Hash", check: Callable[[], None]) -> str:
    """Return the hex digest of a file; `check` is called after every few megabytes and may raise."""
    with path.open("rb") as file:
        while block := file.read(4 * _BLOCK):
            digest.update(block)
            check()
    return digest.hexdigest()
