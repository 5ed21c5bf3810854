"""A weight file behind a plain https link: described by its header, fetched into the volume cache, asked for again.

Whether a caller may name a host is the resolver's to decide; that the host is a public one is the client's.
"""

import hashlib
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pydantic import JsonValue

from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, SourceUnavailable, WorkerError
from worker.core.job import StopSignal
from worker.core.model import Declaration, ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.result import Emit
from worker.net.client import Client
from worker.net.guard import RefusedUrl
from worker.store.cache import VolumeCache
from worker.store.entries import Entry, EntryFile
from worker.store.meter import run_all
from worker.store.remote_header import HeaderReader, read_remote_header
from worker.store.transfer import Fetch, RemoteFile

MEMORY_S = 600.0  # how long an answer counts before the server is asked again
_TIMEOUT_S = 15.0
_MAX_REMEMBERED = 64
_VALIDATORS = {"etag": "if-none-match", "last-modified": "if-modified-since"}


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as its server described it. `at` is a time of `time.monotonic`."""

    index: TensorIndex
    validators: Mapping[str, JsonValue]
    at: float

    @property
    def version(self) -> str:
        """What is another text when the file is another, as far as its server tells."""
        return _digest(f"{sorted(self.validators.items())} {self.index.file_bytes}")


class UrlFiles:
    """Files by URL, fetched into `cache`. `client` holds no token: none is for a host that a caller names."""

    def __init__(self, cache: VolumeCache, client: Client, headers: HeaderReader, *, offline: bool = False) -> None:
        self._cache, self._client, self._headers = cache, client, headers
        self._offline = offline
        self._seen: dict[str, _Seen] = {}
        self._confirmed: dict[str, float] = {}  # when a copy was last found to be what its server has
        self._guard = threading.Lock()

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """The file's header, and its name as the only thing that is declared. Never weights."""
        kept = self._current(source)
        header = self._headers.read(_only(kept).path) if kept else self._look(source).index
        return Outline({}, header, header.weight_bytes, declared=Declaration(name=_title(source)))

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """The file on disk, downloaded where it is not or is another by now. Raises SourceError, AccessDenied …"""
        found: list[Entry | _Seen] = []
        run_all([lambda: found.append(self._current(source) or self._look(source))], stop)
        entry = found[0] if isinstance(found[0], Entry) else self._fetch(source, found[0], emit, stop)
        file = _only(entry)
        return ModelFiles(file.path, entry.total_bytes, bytes_downloaded=entry.bytes_downloaded, sha256=file.sha256)

    # On disk

    def _current(self, source: ModelSource) -> Entry | None:
        """The copy on disk, if it is still what the link leads to, or what its server has cannot be known."""
        key = _key(source)
        name = self._cache.revision(key)
        kept = self._cache.entry(name) if name else None
        if kept is None or (source.sha256 and _only(kept).sha256 != source.sha256):
            if self._offline:
                raise SourceUnavailable(
                    f"{_title(source)} is not in the cache and this worker is offline; unset OFFLINE, or put the file "
                    "on the volume.",
                    field="model",
                )
            return None
        confirmed = time.monotonic() - self._confirmed.get(key, -MEMORY_S) < MEMORY_S
        if source.sha256 or self._offline or confirmed:
            return kept
        try:
            unchanged = self._is_unchanged(source, kept)
        except SourceUnavailable:
            unchanged = True
        if unchanged:
            self._confirmed[key] = time.monotonic()
        return kept if unchanged else None

    def _is_unchanged(self, source: ModelSource, kept: Entry) -> bool:
        noted = {name: kept.details[name] for name in _VALIDATORS if isinstance(kept.details.get(name), str)}
        asked = {_VALIDATORS[name]: str(value) for name, value in noted.items()}
        try:
            # A server that knows no conditions says what it has, and need not send more than a byte of it.
            with self._client.get(source.locator, end=1, headers=asked, timeout_s=_TIMEOUT_S) as answer:
                if answer.status == 304:
                    return True
                if answer.status not in {200, 206}:
                    raise _refused(RemoteFile(_title(source), source.locator), answer.status, answer.headers)
                total = answer.headers.get("content-range", f"/{answer.length}").rpartition("/")[2]
                return _validators(answer.headers) == noted and total in {"*", "None", str(_only(kept).size)}
        except RefusedUrl as error:
            raise AccessDenied(f"{_title(source)} is not fetched: {error}.", field="model") from None
        except OSError:
            raise SourceUnavailable(f"{_title(source)} was not delivered.", field="model") from None

    # Behind the link

    def _look(self, source: ModelSource) -> _Seen:
        """The file's header. Remembered: a model is described before it is fetched."""
        seen = self._seen.get(source.locator)
        if seen is not None and time.monotonic() - seen.at < MEMORY_S:
            return seen
        remote = RemoteFile(_title(source), source.locator)
        header = read_remote_header(self._client, remote, self._headers, _refused)
        seen = _Seen(header.index, _validators(header.answered), time.monotonic())
        with self._guard:
            if len(self._seen) >= _MAX_REMEMBERED:
                self._seen.clear()
            self._seen[source.locator] = seen
        return seen

    def _fetch(self, source: ModelSource, seen: _Seen, emit: Emit, stop: StopSignal) -> Entry:
        key = _key(source)
        name = f"{key}#{seen.version}"
        suffix = ".gguf" if seen.index.container == "gguf" else ".safetensors"
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(_title(source)).stem).strip("._-")[:80]
        file = RemoteFile(f"{stem or 'model'}{suffix}", source.locator, seen.index.file_bytes, source.sha256)
        try:
            entry = self._cache.fetch(
                Fetch(name, [file], self._client, _title(source), emit, stop, _refused, dict(seen.validators))
            )
        except CorruptFile:
            self._seen.pop(source.locator, None)  # perhaps it was replaced between the two looks at it
            raise
        self._cache.note_revision(key, name)
        self._confirmed[key] = time.monotonic()
        return entry


def _refused(file: RemoteFile, status: int, headers: Mapping[str, str]) -> WorkerError:
    """What an answer means that is not the file."""
    if status == 200:
        return CorruptFile(
            f"{file.name} is a web page, not a model: link to the file itself, with a link that needs no login.",
            field="model",
        )
    if status in {401, 403}:
        return AccessDenied(
            f"{file.name} is not given to everybody, or its link has expired: use one that needs no login, or put the "
            "file on the volume and use file:/path.",
            field="model",
        )
    if status in {404, 410}:
        return ModelNotFound(f"{file.name} is not there; check the link.", field="model")
    asked = headers.get("retry-after", "")
    when = f"in {asked} s" if asked.isdecimal() and len(asked) < 8 else "in a minute"
    return SourceUnavailable(
        f"{file.name} cannot be had: its server answered {status}; send the job again {when}.", field="model"
    )


def _validators(headers: Mapping[str, str]) -> dict[str, JsonValue]:
    return {name: headers[name][:300] for name in _VALIDATORS if name in headers}


def _key(source: ModelSource) -> str:
    """The entry of a link. What stands behind its `?` may be a signature, which is not for listings."""
    parts = urlsplit(source.locator)
    return f"url:{parts.netloc}{parts.path}" + (f"?{_digest(parts.query)}" if parts.query else "")


def _title(source: ModelSource) -> str:
    """The last word of the link: what a person calls the file."""
    name = PurePosixPath(unquote(urlsplit(source.locator).path)).name[:80]
    return "".join(char if char.isprintable() else "_" for char in name) or "the file"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _only(entry: Entry) -> EntryFile:
    return next(iter(entry.files.values()))
