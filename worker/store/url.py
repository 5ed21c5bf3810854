"""A weight file behind a plain https link: described by its header, fetched into the volume cache, asked for again.

The resolver decides which hosts a caller may name; the client ensures that a host is a public one.
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
from worker.core.model import ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.result import Emit
from worker.core.turn import StopSignal
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
class _RemoteModel:
    """A file as its server described it. `at` is a time of `time.monotonic`."""

    index: TensorIndex
    validators: Mapping[str, JsonValue]
    at: float

    @property
    def version(self) -> str:
        """A text that differs when the file does, as far as its server tells."""
        return _digest(f"{sorted(self.validators.items())} {self.index.file_bytes}")


class UrlFiles:
    """Files by URL, fetched into `cache`. `client` holds no token: none is for a host that a caller names."""

    def __init__(self, cache: VolumeCache, client: Client, headers: HeaderReader, *, offline: bool = False) -> None:
        self._cache, self._client, self._headers = cache, client, headers
        self._offline = offline
        self._models: dict[str, _RemoteModel] = {}
        self._confirmed: dict[str, float] = {}  # when a copy was last known to be its server's file
        self._guard = threading.Lock()

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return the file's header, and its name as a hint. Never weights."""
        entry = self._current(source)
        header = self._headers.read(_only(entry).path) if entry else self._look(source).index
        return Outline({}, header, header.weight_bytes, file_name=_title(source))

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the file on disk, downloaded if missing or changed by now. Raises SourceError, AccessDenied …"""
        results: list[Entry | _RemoteModel] = []
        run_all([lambda: results.append(self._current(source) or self._look(source))], stop)
        entry = results[0] if isinstance(results[0], Entry) else self._fetch(source, results[0], emit, stop)
        file = _only(entry)
        return ModelFiles(file.path, entry.total_bytes, bytes_downloaded=entry.bytes_downloaded, sha256=file.sha256)

    # On disk

    def _current(self, source: ModelSource) -> Entry | None:
        """Return the copy on disk, if the link still leads to it or its server's file cannot be known."""
        key = _key(source)
        name = self._cache.revision(key)
        entry = self._cache.entry(name) if name else None
        if entry is None or (source.sha256 and _only(entry).sha256 != source.sha256):
            if self._offline:
                raise SourceUnavailable(
                    f"{_title(source)} is not in the cache and this worker is offline; unset OFFLINE, or put the file "
                    "on the volume.",
                    field="model",
                )
            return None
        confirmed = time.monotonic() - self._confirmed.get(key, -MEMORY_S) < MEMORY_S
        if source.sha256 or self._offline or confirmed:
            return entry
        try:
            unchanged = self._is_unchanged(source, entry)
        except SourceUnavailable:
            unchanged = True
        if unchanged:
            self._confirmed[key] = time.monotonic()
        return entry if unchanged else None

    def _is_unchanged(self, source: ModelSource, entry: Entry) -> bool:
        noted = {name: entry.details[name] for name in _VALIDATORS if isinstance(entry.details.get(name), str)}
        conditions = {_VALIDATORS[name]: str(value) for name, value in noted.items()}
        try:
            # A server that knows no conditions describes its file, and need not send more than a byte of it.
            with self._client.get(source.locator, end=1, headers=conditions, timeout_s=_TIMEOUT_S) as response:
                if response.status == 304:
                    return True
                if response.status not in {200, 206}:
                    raise _refused(RemoteFile(_title(source), source.locator), response.status, response.headers)
                total = response.headers.get("content-range", f"/{response.length}").rpartition("/")[2]
                return _validators(response.headers) == noted and total in {"*", "None", str(_only(entry).size)}
        except RefusedUrl as error:
            raise AccessDenied(f"{_title(source)} is not fetched: {error}.", field="model") from None
        except OSError:
            raise SourceUnavailable(f"{_title(source)} was not delivered.", field="model") from None

    # Behind the link

    def _look(self, source: ModelSource) -> _RemoteModel:
        """Return the file's header. Remembered: a model is described before it is fetched."""
        model = self._models.get(source.locator)
        if model is not None and time.monotonic() - model.at < MEMORY_S:
            return model
        remote = RemoteFile(_title(source), source.locator)
        header = read_remote_header(self._client, remote, self._headers, _refused)
        model = _RemoteModel(header.index, _validators(header.answered), time.monotonic())
        with self._guard:
            if len(self._models) >= _MAX_REMEMBERED:
                self._models.clear()
            self._models[source.locator] = model
        return model

    def _fetch(self, source: ModelSource, model: _RemoteModel, emit: Emit, stop: StopSignal) -> Entry:
        key = _key(source)
        name = f"{key}#{model.version}"
        suffix = ".gguf" if model.index.container == "gguf" else ".safetensors"
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(_title(source)).stem).strip("._-")[:80]
        file = RemoteFile(f"{stem or 'model'}{suffix}", source.locator, model.index.file_bytes, source.sha256)
        try:
            entry = self._cache.fetch(
                Fetch(name, [file], self._client, _title(source), emit, stop, _refused, dict(model.validators))
            )
        except CorruptFile:
            self._models.pop(source.locator, None)  # perhaps it was replaced between the two looks at it
            raise
        self._cache.note_revision(key, name)
        self._confirmed[key] = time.monotonic()
        return entry


def _refused(file: RemoteFile, status: int, headers: Mapping[str, str]) -> WorkerError:
    """Turn a response that is not the file into an error."""
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
    retry_after = headers.get("retry-after", "")
    when = f"in {retry_after} s" if retry_after.isdecimal() and len(retry_after) < 8 else "in a minute"
    return SourceUnavailable(
        f"{file.name} cannot be had: its server answered {status}; send the job again {when}.", field="model"
    )


def _validators(headers: Mapping[str, str]) -> dict[str, JsonValue]:
    return {name: headers[name][:300] for name in _VALIDATORS if name in headers}


def _key(source: ModelSource) -> str:
    """Return the entry of a link. The part behind its `?` may be a signature, which is not for listings."""
    parts = urlsplit(source.locator)
    return f"url:{parts.netloc}{parts.path}" + (f"?{_digest(parts.query)}" if parts.query else "")


def _title(source: ModelSource) -> str:
    """Return the last word of the link: the name that a person gives the file."""
    name = PurePosixPath(unquote(urlsplit(source.locator).path)).name[:80]
    return "".join(char if char.isprintable() else "_" for char in name) or "the file"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _only(entry: Entry) -> EntryFile:
    return next(iter(entry.files.values()))
