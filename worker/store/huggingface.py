"""Models from the Hugging Face Hub: looked up on disk first, fetched into the volume cache, checked byte by byte."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import JsonValue

from worker.core.errors import CorruptFile, JobTimeout, ModelNotFound, SourceUnavailable, UnsupportedModel
from worker.core.model import ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.result import Emit, ignore_progress
from worker.core.turn import StopSignal
from worker.net.client import Client
from worker.store.cache import VolumeCache
from worker.store.completeness import check_complete, missing_files, refuse_bulky, refuse_missing
from worker.store.entries import ASIDE, Entry
from worker.store.hub_errors import refused_by_hub
from worker.store.hub_listing import ATTEMPTS, HubListings, Listing, declaration_details, remembered_declaration
from worker.store.local import read_json, read_outline
from worker.store.lockfile import LockedFile, LockedModel
from worker.store.meter import run_all
from worker.store.other_caches import OtherCaches, is_pinned_content
from worker.store.remote_header import HeaderReader, read_remote_header
from worker.store.selection import (
    ADAPTER_CONFIG,
    CONFIG,
    MAX_OUTLINE_BYTES,
    MODEL_INDEX,
    OUTLINE_NAMES,
    ReadIndex,
    Selection,
    check_filename,
    component_files,
    file_selection,
    index_among,
    is_hidden,
    is_pickle,
    is_weights,
    pipeline_files,
    single_file,
)
from worker.store.transfer import Fetch, RemoteFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OUTAGE_MEMORY_S = 60.0  # how long a cached copy is used without asking a Hub that just did not answer
_PEEK_TIMEOUT_S = 60.0
_MAX_OUTLINE_FILES = 100
_ASIDE: Mapping[str, JsonValue] = {ASIDE: True}
_MIN_WEIGHT_BYTES = 10  # eight of the header's length, and two braces

Configs = Mapping[str, Mapping[str, object]]


class HuggingFaceHub:
    """Repositories of the Hub, fetched into `cache`.

    What other tools keep in `caches` is used in place.
    """

    def __init__(
        self,
        cache: VolumeCache,
        client: Client,
        listings: HubListings,
        headers: HeaderReader,
        caches: OtherCaches,
        *,
        allow_pickles: bool = False,
    ) -> None:
        self._cache, self._client, self._listings, self._headers = cache, client, listings, headers
        self._caches = caches
        self._allow_pickles = allow_pickles
        self._outages: dict[tuple[str, str | None], float] = {}  # when the Hub last failed to describe this

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return JSON files, or one file's header: a few kilobytes, never weights."""
        check_filename(source, allow_pickles=self._allow_pickles)
        stop = StopSignal(_PEEK_TIMEOUT_S)
        try:
            described = self._caches.described()
            files = self._on_disk(source, variant, stop, described)
            if files is None:
                listing = self._listing_or_copy(source, variant, stop, described)
                if isinstance(listing, Listing):
                    return self._peek_listed(source, listing, variant, stop)
                files = listing
        except JobTimeout:
            raise SourceUnavailable(
                f"The Hub did not deliver {source.locator} in time; send the job again in a minute.", field="model"
            ) from None
        return self._outline_of(files, source, variant)

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return the model's files on disk, downloaded if missing. Raises SourceError, AccessDenied, DiskFull …"""
        check_filename(source, allow_pickles=self._allow_pickles)
        return self._on_disk(source, variant, stop, self._caches) or self._download(source, variant, emit, stop)

    def lock(self, source: ModelSource, variant: str | None, stop: StopSignal) -> LockedModel:
        """Lock what the Hub has for `source` now; only files without a digest there, all small, are fetched."""
        check_filename(source, allow_pickles=self._allow_pickles)
        listing = self._listings.ask(source)
        configs = self._configs(source, listing, stop)
        chosen = self._choose(source, listing, configs, variant, stop)
        files = {name: replace(listing.files[_below(source, name)], name=name) for name in chosen.names}
        locked = {name: LockedFile(file.size or 0, file.sha256) for name, file in files.items() if file.sha256}
        unlocked = [file for name, file in files.items() if name not in locked]
        if unlocked:
            entry = self._fetch(
                f"{_name(source, listing.commit, variant)}?small", unlocked, source, ignore_progress, stop, _ASIDE
            )
            locked |= {name: LockedFile(file.size, file.sha256) for name, file in entry.files.items()}
        return LockedModel(listing.commit, locked)

    def held(self, source: ModelSource, variant: str | None) -> ModelSource | None:
        """Return `source` at the commit that was last fetched for it; None before that."""
        commit = self._noted(source, variant)
        return source.model_copy(update={"revision": commit}) if commit else None

    def newest(self, source: ModelSource) -> ModelSource:
        """Return `source` at the newest commit of its branch, or of the main one where a commit is pinned."""
        pinned = source.revision is not None and _COMMIT.fullmatch(source.revision)
        branch = source.model_copy(update={"revision": None if pinned else source.revision, "sha256": None})
        return branch.model_copy(update={"revision": self._listings.ask(branch).commit})

    # On disk

    def _on_disk(
        self, source: ModelSource, variant: str | None, stop: StopSignal, caches: OtherCaches
    ) -> ModelFiles | None:
        """Return the files if they are surely the right ones without a question to the Hub."""
        if files := caches.whole(source, variant, stop):
            return files
        baked = self._noted(source, variant, baked=True)
        if baked and (files := self._finished(source, baked, variant, stop)):
            return files
        key = (source.locator, source.revision)
        if self._listings.offline or time.monotonic() - self._outages.get(key, -_OUTAGE_MEMORY_S) < _OUTAGE_MEMORY_S:
            return self._older_copy(source, variant, stop, caches)
        if source.revision and _COMMIT.fullmatch(source.revision):
            return self._finished(source, source.revision, variant, stop)
        remembered = self._listings.remembered(source)
        return self._finished(source, remembered.commit, variant, stop) if remembered else None

    def _finished(self, source: ModelSource, commit: str, variant: str | None, stop: StopSignal) -> ModelFiles | None:
        """Return the files fetched of this commit, if all of them are still there and unharmed."""
        for asked in dict.fromkeys((source, source.whole)):  # a copy of everything holds these parts too
            entry = self._cache.entry(_name(asked, commit, variant), stop.check)
            files = _model_files(entry, source) if entry else None
            if files and is_pinned_content(source, files, stop):
                return files
        return None

    def _noted(self, source: ModelSource, variant: str | None, *, baked: bool = False) -> str | None:
        """Return the commit that `source`, or all of its repository, stood for at its last fetch."""
        names = (_name(asked, source.revision, variant) for asked in (source, source.whole))
        return next(filter(None, (self._cache.revision(name, baked=baked) for name in names)), None)

    def _older_copy(
        self, source: ModelSource, variant: str | None, stop: StopSignal, caches: OtherCaches
    ) -> ModelFiles | None:
        """Return the best copy on this machine, perhaps an older one; another tool's if nothing of it is missing."""
        commit = self._noted(source, variant) or source.revision
        if commit and (files := self._finished(source, commit, variant, stop)):
            return files
        return caches.older(source, variant, stop)

    def _outline_of(self, files: ModelFiles, source: ModelSource, variant: str | None) -> Outline:
        entry = self._cache.entry(_name(source, files.revision or "", variant))
        declared = remembered_declaration(entry.details.get("declared")) if entry else None
        if files.is_single_file:
            index, beside = self._headers.read(files.root), files.root.with_name(ADAPTER_CONFIG)
            configs = {ADAPTER_CONFIG: read_json(beside)} if beside.is_file() else {}
            return Outline(configs, index, index.weight_bytes, files.revision, declared, files.root.name)
        outline = read_outline(files.root, files.variant, source.wants, allow_pickles=self._allow_pickles)
        weights = [] if index_among(outline.configs) else _weights_in(files.root)
        header = self._headers.read(weights[0]) if len(weights) == 1 else None
        total = header.weight_bytes if header else outline.weight_bytes
        file_name = weights[0].name if header else ""
        return Outline(outline.configs, header, total, files.revision, declared, file_name)

    # On the Hub

    def _listing_or_copy(
        self, source: ModelSource, variant: str | None, stop: StopSignal, caches: OtherCaches
    ) -> Listing | ModelFiles:
        """Return the Hub's listing of `source`, or the copy from before when the Hub does not answer."""
        files = self._older_copy(source, variant, stop, caches)
        listings: list[Listing] = []
        try:
            run_all([lambda: listings.append(self._listings.ask(source, attempts=1 if files else ATTEMPTS))], stop)
        except SourceUnavailable:
            if files is None:
                raise
            self._outages[source.locator, source.revision] = time.monotonic()
            return files
        return listings[0]

    def _peek_listed(self, source: ModelSource, listing: Listing, variant: str | None, stop: StopSignal) -> Outline:
        if finished := self._finished(source, listing.commit, variant, stop):
            return self._outline_of(finished, source, variant)
        configs = self._configs(source, listing, stop)
        chosen = self._choose(source, listing, configs, variant, stop)
        refuse_bulky(source.locator, [(name, listing.files[_below(source, name)].size) for name in chosen.names])
        weights = [name for name in chosen.names if is_weights(name)]
        total = sum(listing.files[_below(source, name)].size or 0 for name in weights)
        # The same names as on disk later, or a model would be described otherwise once it is there.
        configs = {
            PurePosixPath(name).name if chosen.main else name: config
            for name, config in configs.items()
            if name in chosen.names
        }
        # A pickle has its header at the end, and is read only where all of it can be scanned.
        if index_among(configs) or len(weights) != 1 or is_pickle(weights[0]):
            return Outline(configs, None, total, listing.commit, listing.declared)
        header = self._remote_header(source, listing.files[_below(source, weights[0])])
        file_name = PurePosixPath(weights[0]).name
        return Outline(configs, header, header.weight_bytes, listing.commit, listing.declared, file_name)

    def _remote_header(self, source: ModelSource, file: RemoteFile) -> TensorIndex:
        return read_remote_header(self._client, file, self._headers, refused_by_hub(source)).index

    def _configs(self, source: ModelSource, listing: Listing, stop: StopSignal) -> Configs:
        """Return the JSON files that describe the repository, by their names below the subfolder."""
        candidates = _names(source, listing)
        if source.filename:
            candidates = [name for name in file_selection(source.filename, candidates).names if name != source.filename]
        else:
            candidates = [name for name in candidates if OUTLINE_NAMES.fullmatch(name)]
        names = [
            name
            for name in sorted(candidates, key=lambda name: name != MODEL_INDEX)
            if (listing.files[_below(source, name)].size or 0) <= MAX_OUTLINE_BYTES
        ][:_MAX_OUTLINE_FILES]
        if not names:
            return {}
        files = [replace(listing.files[_below(source, name)], name=name) for name in names]
        entry = self._fetch(
            f"{_name(source, listing.commit, None)}?outline", files, source, ignore_progress, stop, _ASIDE
        )
        return {name: read_json(entry.files[name].path) for name in names}

    def _index_reader(self, source: ModelSource, listing: Listing, stop: StopSignal) -> ReadIndex:
        """Return the function that reads an index of shards: a small file, fetched for itself."""

        def read_index(name: str) -> dict[str, object]:
            file = replace(listing.files[_below(source, name)], name=name)
            if (file.size or 0) > MAX_OUTLINE_BYTES:
                return {}
            entry_name = f"{_name(source, listing.commit, None)}?index={name}"
            entry = self._fetch(entry_name, [file], source, ignore_progress, stop, _ASIDE)
            return read_json(entry.files[name].path)

        return read_index

    def _choose(
        self, source: ModelSource, listing: Listing, configs: Configs, variant: str | None, stop: StopSignal
    ) -> Selection:
        """Choose the files to fetch, by their names below the subfolder."""
        names = _names(source, listing)
        if not names:
            raise ModelNotFound(f"{source.locator} has no folder {source.subfolder!r} at this revision.", field="model")
        if source.filename:
            if source.filename not in names:
                raise ModelNotFound(
                    f"{source.locator} has no file {source.filename!r} at this revision.", field="model"
                )
            return self._sound(source, listing, file_selection(source.filename, names))
        read_index = self._index_reader(source, listing, stop)
        options: Any = {"allow_pickles": self._allow_pickles, "read_index": read_index}
        if listed := index_among(configs):
            index = configs[listed]
            chosen = pipeline_files(index, names, variant, wants=source.wants, **options)
            if listed == MODEL_INDEX:  # a modular one may list parts of other repositories: detection refuses those
                check_complete(source.locator, index, chosen.names, source.wants, read_index)
            return chosen
        component = component_files(configs.get(CONFIG, {}), names, variant, **options)
        if component is not None:
            refuse_missing(source.locator, missing_files("", "", component.names, read_index))
            return component
        name = single_file(names, source.locator, allow_pickles=self._allow_pickles)
        return self._sound(source, listing, file_selection(name, names))

    def _sound(self, source: ModelSource, listing: Listing, chosen: Selection) -> Selection:
        """Return `chosen` if its one file can be the requested one. Raises CorruptFile before anything is fetched."""
        file = listing.files[_below(source, chosen.main or "")]
        if file.size is not None and file.size < _MIN_WEIGHT_BYTES:
            raise CorruptFile(
                f"{file.name} of {source.locator} is empty; name another file.", field="model", retryable=False
            )
        if source.sha256 and file.sha256 != source.sha256.lower():
            raise CorruptFile(
                f"{file.name} of {source.locator} does not have the sha256 that was asked for; correct the pin, or "
                "name the revision that it belongs to.",
                field="model",
                retryable=False,
            )
        return chosen

    # Onto the disk

    def _download(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        listing = self._listing_or_copy(source, variant, stop, self._caches)
        if isinstance(listing, ModelFiles):
            return listing
        name = _name(source, listing.commit, variant)
        finished = self._finished(source, listing.commit, variant, stop)
        if finished is None:
            configs = self._configs(source, listing, stop)
            chosen = self._choose(source, listing, configs, variant, stop)
            if source.sha256 and chosen.main is None:
                raise UnsupportedModel(
                    f"{source.locator} is many files, and sha256= pins one; name a revision instead.", field="model"
                )
            if shared := self._caches.listed(source, listing, chosen, stop):
                return shared
            details: dict[str, JsonValue] = {
                "revision": listing.commit,
                "variant": chosen.variant,
                "main": chosen.main,
                "declared": declaration_details(listing.declared),
            }
            files = [replace(listing.files[_below(source, file)], name=file) for file in chosen.names]
            entry = self._fetch(name, files, source, emit, stop, details)
            finished = _model_files(entry, source)
        self._cache.note_revision(_name(source, source.revision, variant), listing.commit)
        return finished

    def _fetch(
        self,
        name: str,
        files: list[RemoteFile],
        source: ModelSource,
        emit: Emit,
        stop: StopSignal,
        details: Mapping[str, JsonValue] | None = None,
    ) -> Entry:
        refused = refused_by_hub(source)
        return self._cache.fetch(Fetch(name, files, self._client, source.locator, emit, stop, refused, details or {}))


def _name(source: ModelSource, revision: str | None, variant: str | None) -> str:
    """Return the entry of a source at a commit; with the revision that was asked for, the name of that question."""
    below = "/".join(filter(None, (source.subfolder, source.filename)))
    parts = {"variant": variant, "only": ",".join(source.only), "without": ",".join(source.without)}
    chosen = {} if source.filename else parts
    query = "&".join(f"{key}={value}" for key, value in chosen.items() if value)
    return f"hf:{source.locator}@{revision or 'main'}{f'#{below}' if below else ''}{f'?{query}' if query else ''}"


def _model_files(entry: Entry, source: ModelSource) -> ModelFiles:
    main, variant = entry.details.get("main"), entry.details.get("variant")
    single = entry.files.get(main) if isinstance(main, str) else None
    return ModelFiles(
        single.path if single else entry.root,
        entry.total_bytes,
        revision=str(entry.details.get("revision") or source.revision),
        variant=variant if isinstance(variant, str) else None,
        bytes_downloaded=entry.bytes_downloaded,
        sha256=single.sha256 if single else None,
    )


def _names(source: ModelSource, listing: Listing) -> list[str]:
    """Return the files of a repository by their names below the source's subfolder."""
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    names = (name.removeprefix(prefix) for name in listing.files if name.startswith(prefix))
    return [name for name in names if not is_hidden(name)]


def _below(source: ModelSource, name: str) -> str:
    return f"{source.subfolder}/{name}" if source.subfolder else name


def _weights_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_weights(path.name) and not is_hidden(path.name)]
