"""Models from CivitAI: a version's file, chosen, checked against CivitAI's warnings, fetched into the volume cache."""

import re
import threading
import time
from collections.abc import Collection
from pathlib import PurePosixPath

from pydantic import JsonValue

from worker.core.errors import SourceUnavailable
from worker.core.model import ModelFiles, ModelSource, Outline
from worker.core.result import Emit, ignore_progress
from worker.core.turn import StopSignal
from worker.net.client import Client
from worker.store.cache import VolumeCache
from worker.store.civitai_api import ATTEMPTS, CivitaiApi
from worker.store.civitai_listing import CivitaiFile, CivitaiVersion, check_file, check_version, choose_file
from worker.store.entries import Entry, EntryFile
from worker.store.hub_listing import declaration_details, remembered_declaration
from worker.store.lockfile import LockedFile, LockedModel, locked_from_disk
from worker.store.meter import run_all
from worker.store.remote_header import HeaderReader, read_remote_header
from worker.store.transfer import Fetch, RemoteFile

_OUTAGE_MEMORY_S = 60.0  # how long a cached copy is used without asking a site that just did not answer
_MAX_HEADERS = 64
_SUFFIXES = {"SafeTensor": ".safetensors", "GGUF": ".gguf", "PickleTensor": ".ckpt"}


class CivitAI:
    """CivitAI's models, fetched into `cache`. `hosted_only` are base models that exist as a service only."""

    def __init__(
        self,
        cache: VolumeCache,
        client: Client,
        api: CivitaiApi,
        headers: HeaderReader,
        *,
        hosted_only: Collection[str] = (),
        offline: bool = False,
        allow_pickles: bool = False,
    ) -> None:
        self._cache, self._client, self._api, self._headers = cache, client, api, headers
        self._hosted_only = frozenset(hosted_only)
        self._offline, self._allow_pickles = offline, allow_pickles
        self._outlines: dict[int, tuple[RemoteFile, Outline]] = {}  # by the number of the file
        self._outages: dict[str, float] = {}
        self._guard = threading.Lock()

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return the header of the file that `source` means, with its page's declarations. Never weights."""
        entry = self._on_disk(source)
        if entry is None:
            version = self._version_or_copy(source)
            if isinstance(version, CivitaiVersion):
                return self._peek_listed(version, self._choose(version, source))[1]
            entry = version
        file = _only(entry)
        header = self._headers.read(file.path)
        declared = remembered_declaration(entry.details.get("declared"))
        return Outline({}, header, header.weight_bytes, _version_of(entry), declared, file.path.name)

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the file on disk, downloaded if it is missing. Raises SourceError, AccessDenied, UnsafeFormat …"""
        entry = self._on_disk(source, stop)
        if entry is None:
            results: list[CivitaiVersion | Entry] = []
            run_all([lambda: results.append(self._version_or_copy(source))], stop)
            entry = results[0] if isinstance(results[0], Entry) else self._fetch(results[0], source, emit, stop)
        file = _only(entry)
        return ModelFiles(
            file.path,
            entry.total_bytes,
            revision=_version_of(entry),
            bytes_downloaded=entry.bytes_downloaded,
            sha256=file.sha256,
        )

    def lock(self, source: ModelSource, variant: str | None, stop: StopSignal) -> LockedModel:
        """Lock what CivitAI has for `source` now; fetch the file only if CivitAI names no digest."""
        version = self._version_or_copy(source)
        if isinstance(version, CivitaiVersion):
            remote, outline = self._peek_listed(version, self._choose(version, source))
            if remote.sha256 and remote.size:
                return LockedModel(outline.revision, {remote.name: LockedFile(remote.size, remote.sha256)})
        return locked_from_disk(self.ensure(source, variant, ignore_progress, stop), stop.check)

    def held(self, source: ModelSource, variant: str | None) -> ModelSource | None:
        """Return `source` at the version that was last fetched for it; None before that."""
        name = self._cache.revision(_key(source))
        version = re.fullmatch(r"civitai:(\d+)@(\d+)#\d+", name or "")
        return source.model_copy(update={"locator": version[1], "revision": version[2]}) if version else None

    def newest(self, source: ModelSource) -> ModelSource:
        """Return the newest version of the model of `source` for the same base model, its file chosen anew."""
        if self._offline:
            raise SourceUnavailable("This worker is offline; unset OFFLINE.", field="model")
        model, version = self._api.newest(source)
        kept = {"filename": None, "sha256": None}  # numbers and names are of one version's files
        return source.model_copy(update={"locator": str(model), "revision": str(version), **kept})

    def licence(self, source: ModelSource) -> str | None:
        """Return what the model's page allows; None where it tells nothing. Raises as a peek does."""
        if self._offline:
            raise SourceUnavailable("This worker is offline; unset OFFLINE.", field="model")
        return self._api.licence(source)

    # On disk

    def _on_disk(self, source: ModelSource, stop: StopSignal | None = None) -> Entry | None:
        """Return the file if it is surely the right one without a request: a version's files do not change."""
        key = _key(source)
        recent = time.monotonic() - self._outages.get(key, -_OUTAGE_MEMORY_S) < _OUTAGE_MEMORY_S
        if source.revision or self._offline or recent:
            return self._older_copy(source, stop)
        if baked := self._cache.revision(key, baked=True):
            return self._finished(baked, source, stop)
        remembered = self._api.remembered(source)
        return (
            self._finished(_entry_name(remembered, self._choose(remembered, source)), source, stop)
            if remembered
            else None
        )

    def _older_copy(self, source: ModelSource, stop: StopSignal | None = None) -> Entry | None:
        """Return the copy that `source` meant at its last fetch."""
        name = self._cache.revision(_key(source))
        return self._finished(name, source, stop) if name else None

    def _finished(self, name: str, source: ModelSource, stop: StopSignal | None) -> Entry | None:
        entry = self._cache.entry(name, stop.check) if stop else self._cache.entry(name)
        if entry is None or (source.sha256 and _only(entry).sha256 != source.sha256):
            return None
        return entry

    # On CivitAI

    def _version_or_copy(self, source: ModelSource) -> CivitaiVersion | Entry:
        """Return CivitAI's version for `source`, or the copy from before when CivitAI does not answer."""
        if self._offline:
            raise SourceUnavailable(
                f"{_key(source)} is not in the cache and this worker is offline; unset OFFLINE, or put the model on "
                "the volume.",
                field="model",
            )
        entry = self._older_copy(source)
        try:
            return self._api.version(source, attempts=1 if entry else ATTEMPTS)
        except SourceUnavailable:
            if entry is None:
                raise
            self._outages[_key(source)] = time.monotonic()
            return entry

    def _choose(self, version: CivitaiVersion, source: ModelSource) -> CivitaiFile:
        check_version(version, source, self._hosted_only)
        file = choose_file(version, source)
        check_file(file, version, source, allow_pickles=self._allow_pickles)
        return file

    def _peek_listed(self, version: CivitaiVersion, file: CivitaiFile) -> tuple[RemoteFile, Outline]:
        """Return the file as it is fetched, with its exact size, and its outline. Remembered."""
        with self._guard:
            remembered = self._outlines.get(file.id)
        if remembered is not None:
            return remembered
        remote = self._api.download(version, file, _file_name(file))
        if file.format == "PickleTensor":  # where it is allowed at all: its content shows once it is on disk
            return remote, Outline(revision=str(version.id), declared=version.declared)
        header = read_remote_header(self._client, remote, self._headers, self._api.refused(version)).index
        sized = RemoteFile(remote.name, remote.url, header.file_bytes, file.sha256)
        outline = Outline({}, header, header.weight_bytes, str(version.id), version.declared, remote.name)
        with self._guard:
            if len(self._outlines) >= _MAX_HEADERS:
                self._outlines.clear()
            self._outlines[file.id] = sized, outline
        return sized, outline

    def _fetch(self, version: CivitaiVersion, source: ModelSource, emit: Emit, stop: StopSignal) -> Entry:
        file = self._choose(version, source)
        name = _entry_name(version, file)
        entry = self._finished(name, source, stop)
        if entry is None:
            peeked: list[tuple[RemoteFile, Outline]] = []
            run_all([lambda: peeked.append(self._peek_listed(version, file))], stop)
            remote = peeked[0][0]
            files = [RemoteFile(remote.name, remote.url, remote.size, source.sha256 or remote.sha256)]
            declared = declaration_details(version.declared)
            details: dict[str, JsonValue] = {"version": str(version.id), "declared": declared}
            refused = self._api.refused(version)
            entry = self._cache.fetch(Fetch(name, files, self._client, version.label, emit, stop, refused, details))
        self._cache.note_revision(_key(source), name)
        return entry


def _key(source: ModelSource) -> str:
    """Return the question that `source` asks, whatever its digest."""
    return source.model_copy(update={"sha256": None}).reference


def _entry_name(version: CivitaiVersion, file: CivitaiFile) -> str:
    return f"{version.label}#{file.id}"


def _file_name(file: CivitaiFile) -> str:
    """Return a name for the disk: the remote one is only a hint of what a person calls it."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(file.name).stem).strip("._-")[:80]
    suffix = PurePosixPath(file.name).suffix.lower()
    return (stem or str(file.id)) + (suffix if suffix in {".pt", ".pth", ".bin"} else _SUFFIXES[file.format])


def _only(entry: Entry) -> EntryFile:
    return next(iter(entry.files.values()))


def _version_of(entry: Entry) -> str | None:
    version = entry.details.get("version")
    return version if isinstance(version, str) else None
