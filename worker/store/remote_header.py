"""A remote file's header by range requests: a few hundred kilobytes tell what a 7 GB checkpoint is.

The first request guesses the header's length, the next asks for exactly the missing bytes. A server that answers a
range with the whole file is read no further than the header.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.core.errors import AccessDenied, CorruptFile, SourceUnavailable, WorkerError
from worker.core.model import TensorIndex
from worker.net.client import Client, Response
from worker.net.guard import RefusedUrl, seconds_left
from worker.store.local import ReadHeader
from worker.store.transfer import Refused, RemoteFile

GUESS_BYTES = 256 * 2**10  # the headers of half of all checkpoints, and of nearly every LoRA, are shorter
DEADLINE_S = 60.0
_MAX_REQUESTS = 8  # a GGUF header says only bit by bit how long it is
_ATTEMPTS = 2
_BACKOFF_S = 0.5
_BUSY = frozenset({408, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


@dataclass(frozen=True, slots=True)
class HeaderReader:
    """The functions that read a header. All raise CorruptFile, UnsafeFormat or UnsupportedModel.

    `end(prefix, file_bytes, name)` returns how many leading bytes hold it, or how many to call it with again; `parse`
    reads that many; `read` reads the header of a file on disk.
    """

    end: Callable[[bytes, int, str], int]
    parse: Callable[[bytes, int, str], TensorIndex]
    read: ReadHeader


@dataclass(frozen=True, slots=True)
class RemoteHeader:
    """A remote file's header, and its server's HTTP headers, with names in lower case."""

    index: TensorIndex
    answered: Mapping[str, str]


def read_remote_header(client: Client, file: RemoteFile, reader: HeaderReader, refused: Refused) -> RemoteHeader:
    """Read the header of `file`. Blocking, for a minute at most.

    Raises the error of `refused` for a refusal or an HTML page, and that of `reader` for a file that is no model.
    Raises SourceUnavailable for a server that fails or stalls, AccessDenied for a link to a forbidden address.
    """
    reading = _Reading(client, file, reader, refused)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return reading.run()
        except WorkerError as error:  # from the reader, which knows of no request
            error.field = error.field or "model"
            raise
        except RefusedUrl as error:
            raise AccessDenied(f"{file.name} is not fetched: {error}.", field="model") from None
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise SourceUnavailable(
                    f"{file.name} cannot be read: {error}; send the job again in a minute.", field="model"
                ) from None
        time.sleep(_BACKOFF_S)
    raise AssertionError("unreachable")


class _Reading:
    """The bytes of one header so far. A second run goes on where the first one broke off."""

    def __init__(self, client: Client, file: RemoteFile, reader: HeaderReader, refused: Refused) -> None:
        self._client, self._file, self._reader, self._refused = client, file, reader, refused
        self._prefix = bytearray()
        self._size = 0
        self._etag: str | None = None
        self._deadline = time.monotonic() + DEADLINE_S

    def run(self) -> RemoteHeader:
        """Ask until the header is here. Raises OSError."""
        needed = max(GUESS_BYTES, len(self._prefix) + 1)
        for _ in range(_MAX_REQUESTS):
            opened = self._client.get(
                self._file.url,
                start=len(self._prefix),
                end=needed,
                etag=self._etag,
                timeout_s=min(20.0, seconds_left(self._deadline)),
            )
            with opened as response:
                self._accept(response)
                while True:
                    self._fill(response, needed)
                    needed = self._reader.end(bytes(self._prefix), self._size, self._file.name)
                    if needed <= len(self._prefix):
                        index = self._reader.parse(bytes(self._prefix), self._size, self._file.name)
                        return RemoteHeader(index, response.headers)
                    if response.status == 206:
                        break  # the rest by another request; a whole file is simply read on
        raise ConnectionError("its server sends too little at a time")

    def _accept(self, response: Response) -> None:
        """Note the length of the file, and the place where the body begins."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status in _BUSY:
            raise ConnectionError(f"its server answered {response.status}")
        if response.status == 416 and match and int(match[2]) == 0:
            self._size = 0
            return
        is_page = response.headers.get("content-type", "").startswith("text/html")
        if response.status not in {200, 206} or is_page:
            raise self._refused(self._file, 200 if response.status == 206 else response.status, response.headers)
        self._size = self._whole(response) if response.status == 200 else self._range(match)
        self._etag = response.headers.get("etag")
        if self._file.size is not None and self._size != self._file.size:
            raise CorruptFile(
                f"{self._file.name} has {self._size:,} bytes where {self._file.size:,} were announced; "
                "send the job again in a minute.",
                field="model",
            )

    def _whole(self, response: Response) -> int:
        """Begin anew with a response that is the file from its first byte, and return the file's length."""
        self._prefix.clear()
        size = response.length if response.length is not None else self._file.size
        if size is None:
            raise CorruptFile(
                f"{self._file.name}: its server does not say how long it is; download the file to the volume and "
                "use file:/path.",
                field="model",
            )
        return size

    def _range(self, match: re.Match[str] | None) -> int:
        """Return the whole file's length, from the range of a response. Raises ConnectionError for another range."""
        if match is None or match[1] is None or int(match[1]) != len(self._prefix):
            raise ConnectionError("its server answered another range than was asked for")
        return int(match[2])

    def _fill(self, response: Response, needed: int) -> None:
        if response.status == 416:
            return
        while len(self._prefix) < needed and (block := response.read(needed - len(self._prefix))):
            self._prefix += block
            seconds_left(self._deadline)
