"""Models from the Hugging Face Hub: looked up on disk first, fetched through huggingface_hub, checked byte by byte."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import CorruptFile, DiskFull, JobTimeout, ModelNotFound, SourceUnavailable
from worker.core.job import StopSignal
from worker.core.model import ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.result import Emit
from worker.store import snapshot as disk
from worker.store.hub_errors import ATTEMPTS, hub_errors, with_retries
from worker.store.local import ReadHeader, read_json, read_outline
from worker.store.selection import (
    MAX_OUTLINE_BYTES,
    MODEL_INDEX,
    OUTLINE_NAMES,
    Selection,
    check_filename,
    pipeline_files,
    single_file,
)
from worker.store.transfer import ByteMeter, run_all, sha256_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTING_TIMEOUT_S = 10.0
_LISTING_MEMORY_S = 600.0
_MAX_LISTINGS = 256
_OUTAGE_MEMORY_S = 60.0  # how long a cached copy is used without asking a Hub that just did not answer
_PEEK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.1
_RESERVE_BYTES = 512 * 2**20
_MAX_OUTLINE_FILES = 100
_MIN_SAFETENSORS_BYTES = 10  # eight of the header's length, and two braces


@dataclass(frozen=True, slots=True)
class Listing:
    """One commit of a repository as the Hub describes it: sizes in bytes by file name, digests of the large files."""

    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]
    asked_at: float


class HuggingFaceHub:
    """Repositories of the Hub. `lookup` folders hold caches that are read before `cache`, and never written."""

    def __init__(
        self,
        cache: Path,
        *,
        lookup: Iterable[Path] = (),
        read_header: ReadHeader,
        endpoint: str = "https://huggingface.co",
        token: str | None = None,
        offline: bool = False,
        workers: int = 4,
    ) -> None:
        self._cache = cache
        self._lookup = tuple(lookup)
        self._read_header = read_header
        self._endpoint = endpoint
        self._token = token
        self._offline = offline
        self._workers = workers
        self._listings: dict[tuple[str, str | None], Listing] = {}
        self._outages: dict[tuple[str, str | None], float] = {}  # when the Hub last failed to describe this
        self._locks: dict[str, threading.Lock] = {}  # one download of a repository at a time; others go on
        self._guard = threading.Lock()

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """JSON files, or one file's header: a few kilobytes, never weights."""
        check_filename(source)
        found = self._on_disk(source, variant)
        if found is None:
            listing = self._listing_or_kept(source, variant)
            if isinstance(listing, Listing):
                return self._peek_listed(source, listing, variant)
            found = listing
        return self._outline_of(found)

    def ensure(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        """The model's files on disk, downloaded where they are not. Raises SourceError, AccessDenied, DiskFull …"""
        check_filename(source)
        found = self._on_disk(source, variant)
        if found is not None:
            return found
        with self._alone(source.locator, stop):
            return self._on_disk(source, variant) or self._download(source, variant, emit, stop)

    # On disk

    def _on_disk(self, source: ModelSource, variant: str | None) -> ModelFiles | None:
        """The files, where no question to the Hub is needed to know that they are the right ones."""
        for cache in self._lookup:
            for found in disk.find_snapshots(cache, source.locator, source.revision):
                if files := disk.complete_files(found, source, variant, guess=True):
                    return files
        key = (source.locator, source.revision)
        if self._offline or time.monotonic() - self._outages.get(key, -_OUTAGE_MEMORY_S) < _OUTAGE_MEMORY_S:
            return self._kept(source, variant)
        if source.revision and _COMMIT.fullmatch(source.revision):
            return self._finished(source, source.revision, variant)
        remembered = self._remembered(key)
        return self._finished(source, remembered.commit, variant) if remembered else None

    def _finished(self, source: ModelSource, commit: str, variant: str | None) -> ModelFiles | None:
        """What was fetched of this commit, if all of it is still there."""
        folder = disk.repo_folder(self._cache, source.locator) / "snapshots" / commit
        manifest = disk.read_manifest(self._cache, source.locator, commit, source.filename, variant, folder)
        if manifest is None:
            return None
        root = folder if MODEL_INDEX in manifest.files else folder / next(iter(manifest.files))
        return ModelFiles(root, manifest.total_bytes, revision=commit, variant=manifest.variant)

    def _kept(self, source: ModelSource, variant: str | None) -> ModelFiles | None:
        """The best copy in the cache, perhaps an older one; another tool's is taken when nothing is missing."""
        for found in disk.find_snapshots(self._cache, source.locator, source.revision):
            files = self._finished(source, found.commit, variant) or disk.complete_files(found, source, variant)
            if files is not None:
                return files
        return None

    def _outline_of(self, files: ModelFiles) -> Outline:
        if files.is_single_file:
            header = self._read_header(files.root)
            return Outline(header=header, weight_bytes=header.weight_bytes, revision=files.revision)
        outline = read_outline(files.root, files.variant)
        return Outline(outline.configs, None, outline.weight_bytes, files.revision)

    # On the Hub

    def _listing_or_kept(self, source: ModelSource, variant: str | None) -> Listing | ModelFiles:
        """What the Hub says of `source`, or the copy from before when it says nothing."""
        kept = self._kept(source, variant)
        try:
            return self._listing(source, attempts=1 if kept else ATTEMPTS)
        except SourceUnavailable:
            if kept is None:
                raise
            self._outages[source.locator, source.revision] = time.monotonic()
            return kept

    def _listing(self, source: ModelSource, attempts: int = ATTEMPTS) -> Listing:
        key = (source.locator, source.revision)
        if remembered := self._remembered(key):
            return remembered
        if self._offline:
            raise SourceUnavailable(
                f"{source.locator} is not in the cache and this worker is offline; "
                "unset OFFLINE, or put the model on the volume.",
                field="model",
            )
        from huggingface_hub import HfApi

        with hub_errors(source):
            info = with_retries(
                lambda: HfApi(endpoint=self._endpoint, token=self._token or False).model_info(
                    source.locator, revision=source.revision, timeout=_LISTING_TIMEOUT_S, files_metadata=True
                ),
                attempts,
            )
        files = info.siblings or []
        listing = Listing(
            commit=str(info.sha),
            sizes={item.rfilename: item.size or 0 for item in files},
            sha256={item.rfilename: item.lfs.sha256 for item in files if item.lfs},
            asked_at=time.monotonic(),
        )
        with self._guard:
            if len(self._listings) >= _MAX_LISTINGS:
                self._listings.clear()
            self._listings[key] = listing
        return listing

    def _remembered(self, key: tuple[str, str | None]) -> Listing | None:
        listing = self._listings.get(key)
        return listing if listing and time.monotonic() - listing.asked_at < _LISTING_MEMORY_S else None

    def _peek_listed(self, source: ModelSource, listing: Listing, variant: str | None) -> Outline:
        if finished := self._finished(source, listing.commit, variant):
            return self._outline_of(finished)
        if source.filename or MODEL_INDEX not in listing.sizes:
            return self._peek_file(source, listing)
        return self._peek_pipeline(source, listing, variant)

    def _peek_file(self, source: ModelSource, listing: Listing) -> Outline:
        name = source.filename or single_file(listing.sizes, source.locator)
        _require(name, listing, source)
        from huggingface_hub import HfApi

        try:
            with hub_errors(source):
                parsed = with_retries(
                    lambda: HfApi(endpoint=self._endpoint, token=self._token or False).parse_safetensors_file_metadata(
                        source.locator, name, revision=listing.commit
                    )
                )
            tensors = {key: (str(item.dtype), tuple(map(int, item.shape))) for key, item in parsed.tensors.items()}
            metadata = {key: str(value) for key, value in (parsed.metadata or {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # JSON of another shape
            raise CorruptFile(f"{name} of {source.locator} has no safetensors header.", field="model") from None
        header = TensorIndex(tensors, metadata, "safetensors", listing.sizes[name])
        return Outline(header=header, weight_bytes=header.weight_bytes, revision=listing.commit)

    def _peek_pipeline(self, source: ModelSource, listing: Listing, variant: str | None) -> Outline:
        names = [
            name
            for name, size in sorted(listing.sizes.items(), key=lambda item: item[0] != MODEL_INDEX)
            if OUTLINE_NAMES.fullmatch(name) and size <= MAX_OUTLINE_BYTES
        ][:_MAX_OUTLINE_FILES]
        paths: dict[str, Path] = {}

        def fetching(name: str) -> Callable[[], None]:
            return lambda: paths.update({name: self._fetch(source, listing, name, None)})

        try:
            run_all(map(fetching, names), StopSignal(_PEEK_TIMEOUT_S), self._workers)
        except JobTimeout:
            raise SourceUnavailable(
                f"The Hub did not deliver {source.locator} in time; send the job again in a minute.", field="model"
            ) from None
        configs = {name: read_json(paths[name]) for name in names}
        chosen = pipeline_files(configs.get(MODEL_INDEX, {}), listing.sizes, variant)
        weights = sum(listing.sizes[name] for name in chosen.names if name.endswith(".safetensors"))
        return Outline(configs=configs, weight_bytes=weights, revision=listing.commit)

    # Onto the disk

    @contextmanager
    def _alone(self, repo: str, stop: StopSignal) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(repo, threading.Lock())
        while not lock.acquire(timeout=_LOCK_POLL_S):
            stop.check()
        try:
            yield
        finally:
            lock.release()

    def _download(self, source: ModelSource, variant: str | None, emit: Emit, stop: StopSignal) -> ModelFiles:
        prepared: list[tuple[Listing, Selection] | ModelFiles] = []
        run_all([lambda: prepared.append(self._prepare(source, variant))], stop)
        if isinstance(prepared[0], ModelFiles):
            return prepared[0]
        listing, chosen = prepared[0]
        sizes = {name: listing.sizes[name] for name in chosen.names}
        folder = disk.repo_folder(self._cache, source.locator) / "snapshots" / listing.commit
        self._check_space(source, {name: size for name, size in sizes.items() if not (folder / name).exists()})
        meter = ByteMeter(source.locator, sizes, emit, stop)

        def fetching(name: str) -> Callable[[], Path]:
            return lambda: self._fetch(source, listing, name, meter)

        try:
            run_all(map(fetching, sizes), stop, self._workers)
        finally:
            meter.close()
        manifest = disk.Manifest(sizes, chosen.variant)
        disk.write_manifest(self._cache, source.locator, listing.commit, source.filename, variant, manifest)
        disk.write_reference(self._cache, source.locator, source.revision, listing.commit)
        root = folder if MODEL_INDEX in sizes else folder / chosen.names[0]
        return ModelFiles(root, manifest.total_bytes, listing.commit, chosen.variant, bytes_downloaded=meter.received)

    def _prepare(self, source: ModelSource, variant: str | None) -> tuple[Listing, Selection] | ModelFiles:
        listing = self._listing_or_kept(source, variant)
        if isinstance(listing, ModelFiles):
            return listing
        finished = self._finished(source, listing.commit, variant)
        return finished or (listing, self._choose(source, listing, variant))

    def _choose(self, source: ModelSource, listing: Listing, variant: str | None) -> Selection:
        if source.filename:
            _require(source.filename, listing, source)
            return Selection((source.filename,), None)
        if MODEL_INDEX in listing.sizes:
            index = read_json(self._fetch(source, listing, MODEL_INDEX, None))
            return pipeline_files(index, listing.sizes, variant)
        return Selection((single_file(listing.sizes, source.locator),), None)

    def _check_space(self, source: ModelSource, missing: Mapping[str, int]) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        needed, free = sum(missing.values()), shutil.disk_usage(self._cache).free
        if needed and needed + _RESERVE_BYTES > free:
            raise DiskFull(
                f"{source.locator} needs {needed / 2**30:.1f} GiB and the volume has {free / 2**30:.1f} GiB free; "
                "use a larger volume or remove models with `python -m worker cache`.",
                field="model",
            )

    def _fetch(self, source: ModelSource, listing: Listing, name: str, meter: ByteMeter | None) -> Path:
        """One file on disk, true to what the Hub says of it. What is not is fetched once more."""
        from huggingface_hub import hf_hub_download

        pointer = disk.repo_folder(self._cache, source.locator) / "snapshots" / listing.commit / name
        for _ in range(2):
            if meter is not None:
                meter.check()
            is_new = not pointer.exists()
            with hub_errors(source):
                path = Path(
                    with_retries(
                        lambda: hf_hub_download(
                            source.locator,
                            name,
                            revision=listing.commit,
                            cache_dir=self._cache,
                            token=self._token or False,
                            endpoint=self._endpoint,
                            tqdm_class=meter.bar(name) if meter else None,
                        )
                    )
                )
            if _is_true(path, name, listing, meter, is_new=is_new):
                if meter is not None:
                    meter.finished(name)
                return path
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise CorruptFile(
            f"{name} of {source.locator} arrived damaged twice and was removed; send the job again.", field="model"
        )


def _is_true(path: Path, name: str, listing: Listing, meter: ByteMeter | None, *, is_new: bool) -> bool:
    """Whether a file has the size that the Hub names, and its digest too if it was just fetched."""
    if path.stat().st_size != listing.sizes[name]:
        return False
    digest = listing.sha256.get(name)
    # huggingface_hub checks no digest, and one flipped bit on the way is a picture that nobody can explain.
    return not (is_new and digest) or sha256_of(path, meter.check if meter else lambda: None) == digest


def _require(name: str, listing: Listing, source: ModelSource) -> None:
    if name not in listing.sizes:
        raise ModelNotFound(f"{source.locator} has no file {name!r} at this revision.", field="model")
    if listing.sizes[name] < _MIN_SAFETENSORS_BYTES:
        raise CorruptFile(f"{name} of {source.locator} is empty; name another file.", field="model")
