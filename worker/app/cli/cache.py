"""Commands for the models on the volume: cache ls, pull, rm, pin, unpin, verify, prune; and lock."""

from argparse import Namespace
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from worker.app.build import Worker
from worker.app.cli.session import LONG_S, failures, open_worker, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.registry import build_registry
from worker.app.stores import build_cache
from worker.core.model import ModelSource, ModelSpec
from worker.core.turn import StopSignal
from worker.service.local.pinning import Pinning
from worker.store.cache import VolumeCache
from worker.store.entries import ASIDE, Entry
from worker.store.janitor import GARBAGE_AGE_S
from worker.store.lockfile import Lockfile, lock_key
from worker.store.snapshot import list_repositories


def lock(arguments: Namespace, terminal: Terminal) -> None:
    """Write down the revision and the digests of every model of models.yaml, so that a deploy can be repeated."""
    with open_worker(terminal, unregistered=True, locked=False) as worker:
        stop = StopSignal(LONG_S)
        pairs = [item for spec in worker.registry.models.values() for item in sources_of(worker, spec)]
        models = {
            lock_key(source, variant): worker.store.lock(source, variant, terminal.show, stop)
            for source, variant in pairs
            if not source.is_local  # the operator's own files: nobody else changes them
        }
        beside = worker.settings.models_yaml.with_name("models.lock")
        path = Path(arguments.output) if arguments.output else settings_of(terminal).lock_file or beside
        Lockfile(models).write(path)
    terminal.print(f"{path}: {len(models)} locked")


def list_entries(arguments: Namespace, terminal: Terminal) -> None:
    """List what is on the volume, and the models that other programs keep where the worker finds them."""
    settings = settings_of(terminal)
    cache = build_cache(settings)
    models = [
        _Line(entry.name, len(entry.files), entry.total_bytes, entry.last_used, entry.pinned, str(cache.root))
        for entry in cache.entries()
        if not entry.details.get(ASIDE)
    ]
    for folder in settings.hub_caches:
        for repo in list_repositories(folder):
            models.append(_Line(repo.name, repo.files, repo.total_bytes, repo.last_used, False, str(folder)))
    if arguments.json:
        terminal.json(
            {"folder": str(cache.root), "bytes": cache.used_bytes(), "models": [asdict(line) for line in models]}
        )
        return
    terminal.print(f"{cache.root} ({cache.used_bytes() / 1e9:.2f} GB)")
    terminal.table(("model", "files", "GB", "last used", ""), [line.cells(str(cache.root)) for line in models])


def pull(arguments: Namespace, terminal: Terminal) -> None:
    """Download a model, so that the first job finds it."""
    with open_worker(terminal, unregistered=True, typed={"model": "MODEL"}) as worker:
        spec = worker.resolver.resolve(arguments.model)
        if arguments.revision is not None:
            spec = spec.model_copy(update={"source": spec.source.model_copy(update={"revision": arguments.revision})})
        stop = StopSignal(LONG_S)
        files, *_ = [worker.store.ensure(*item, terminal.show, stop) for item in sources_of(worker, spec)]
    terminal.print(f"{spec.id}: {files.total_bytes / 1e9:.2f} GB at revision {files.revision or 'local'}")


def remove(arguments: Namespace, terminal: Terminal) -> None:
    """Remove a model from the volume, whether it is in use or not."""
    cache, entries = _entries(arguments.model, terminal)
    with failures(terminal):
        freed = sum(cache.remove(entry) for entry in entries)
    terminal.print(f"{freed / 1e9:.2f} GB freed")


def pin(arguments: Namespace, terminal: Terminal) -> None:
    """Never evict a model to make room."""
    _pin(arguments.model, terminal, pinned=True)


def unpin(arguments: Namespace, terminal: Terminal) -> None:
    """Let a model be evicted again."""
    _pin(arguments.model, terminal, pinned=False)


def verify(arguments: Namespace, terminal: Terminal) -> None:
    """Hash every file again and name the damaged ones; with --remove they go, and are fetched when they are needed."""
    if arguments.model:
        cache, entries = _entries(arguments.model, terminal)
    else:
        cache = build_cache(settings_of(terminal))
        entries = [*cache.entries()]
    rows, damaged = [], 0
    for entry in entries:
        wrong = cache.damaged(entry, removes=arguments.remove)
        damaged += len(wrong)
        rows.append((entry.name, str(len(entry.files)), f"{entry.total_bytes / 1e9:.2f}", ", ".join(wrong) or "none"))
    terminal.table(("model", "files", "GB", "damaged"), rows)
    if damaged and arguments.remove:
        raise Failure(f"{damaged} damaged files were removed; the next job that needs them fetches them again.")
    if damaged:
        raise Failure(f"{damaged} damaged files would be removed; `{terminal.prog} cache verify --remove` does it.")


def prune(arguments: Namespace, terminal: Terminal) -> None:
    """Remove the leftovers of broken downloads, and files that belong to no model."""
    hours = arguments.older_than_hours
    if hours is not None and not 0 <= hours < float("inf"):
        raise Failure(f"--older-than-hours must be at least 0; {hours:g} was given.")
    swept = build_cache(settings_of(terminal)).prune(GARBAGE_AGE_S if hours is None else hours * 3600)
    terminal.print(f"{swept.files} files, {swept.total_bytes / 1e9:.2f} GB freed")


@dataclass(frozen=True, slots=True)
class _Line:
    """One model of a cache; `last_used` is in seconds since 1970."""

    model: str
    files: int
    bytes: int
    last_used: float
    pinned: bool
    folder: str

    def cells(self, volume: str) -> tuple[str, ...]:
        mark = "pinned" if self.pinned else "" if self.folder == volume else f"in {self.folder}"
        used = f"{datetime.fromtimestamp(self.last_used):%Y-%m-%d %H:%M}"
        return self.model, str(self.files), f"{self.bytes / 1e9:.2f}", used, mark


def sources_of(worker: Worker, spec: ModelSpec) -> list[tuple[ModelSource, str | None]]:
    """Return all sources of a registry's model, itself first, each with its variant."""
    further = [name for name in (spec.upscale.model if spec.upscale else None, spec.refiner) if name is not None]
    pinning = Pinning(worker.store, worker.resolver, worker.provisioner, lambda digests: False)
    return [*pinning.sources(spec), *((worker.resolver.part_source(name), None) for name in further)]


def _pin(model: str, terminal: Terminal, *, pinned: bool) -> None:
    cache, entries = _entries(model, terminal)
    for entry in entries:
        cache.pin(entry, pinned=pinned)
        if not entry.details.get(ASIDE):
            terminal.print(f"{entry.name} {'is pinned' if pinned else 'is not pinned'}")


def _entries(model: str, terminal: Terminal) -> tuple[VolumeCache, list[Entry]]:
    """Return the entries that an operator names, by their own name or the registry's, and their cache."""
    settings = settings_of(terminal)
    cache = build_cache(settings)
    entries = cache.matching(model)
    if not entries:
        with failures(terminal):
            spec = build_registry(settings).find(model)
        entries = cache.matching(spec.source.locator) if spec is not None else []
    if not entries:
        raise Failure(f"{model} is not in the cache; see `{terminal.prog} cache ls`.")
    return cache, entries
