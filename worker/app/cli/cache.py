"""Commands for the models on the volume: cache ls, pull, rm, pin, unpin, verify, prune; and lock."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from worker.app.cli.terminal import LONG_S, OUT, fail, open_worker, progress_bars, settings_or_exit, sources
from worker.app.registry import build_registry
from worker.app.settings import Settings, SettingsError
from worker.app.stores import build_cache
from worker.catalog.registry import Registry, RegistryError
from worker.core.job import StopSignal
from worker.store.cache import VolumeCache
from worker.store.entries import ASIDE, Entry
from worker.store.janitor import GARBAGE_AGE_S
from worker.store.lockfile import Lockfile, lock_key
from worker.store.snapshot import list_repositories

app = typer.Typer()
cache_app = typer.Typer(no_args_is_help=True, help="Models on the volume.")
app.add_typer(cache_app, name="cache")


@app.command()
def lock(
    output: Annotated[
        Path | None, typer.Option(help="The lockfile; models.lock beside models.yaml by default.")
    ] = None,
) -> None:
    """Write down the revision and the digests of every model of models.yaml, so that a deploy can be repeated."""
    with open_worker(unregistered=True, locked=False) as worker, progress_bars() as show:
        stop = StopSignal(LONG_S)
        pairs = [item for spec in worker.registry.models.values() for item in sources(worker, spec)]
        models = {
            lock_key(source, variant): worker.store.lock(source, variant, show, stop)
            for source, variant in pairs
            if not source.is_local  # the operator's own files: nobody else changes them
        }
        path = output or settings_or_exit().lock_file or worker.settings.models_yaml.with_name("models.lock")
        Lockfile(models).write(path)
    OUT.print(f"{path}: {len(models)} locked", highlight=False, soft_wrap=True)


@cache_app.command("ls")
def cache_ls() -> None:
    """List what is on the volume, and the models that other programs keep where the worker finds them."""
    settings = settings_or_exit()
    cache = build_cache(settings)
    table = Table("model", "files", "GB", "last used", "", title=f"{cache.root} ({cache.used_bytes() / 1e9:.2f} GB)")
    for entry in cache.entries():
        if entry.details.get(ASIDE):
            continue
        mark = "pinned" if entry.pinned else ""
        table.add_row(entry.name, *_columns(len(entry.files), entry.total_bytes, entry.last_used), mark)
    for folder in settings.hub_caches:
        for repo in list_repositories(folder):
            table.add_row(repo.name, *_columns(repo.files, repo.total_bytes, repo.last_used), f"in {folder}")
    OUT.print(table)


@cache_app.command("pull")
def cache_pull(
    model: Annotated[str, typer.Argument(help="A model id or reference.")],
    revision: Annotated[str | None, typer.Option(help="A commit, branch or tag.")] = None,
) -> None:
    """Download a model, so that the first job finds it."""
    with open_worker(unregistered=True) as worker, progress_bars() as show:
        spec = worker.resolver.resolve(model)
        if revision is not None:
            spec = spec.model_copy(update={"source": spec.source.model_copy(update={"revision": revision})})
        files, *_ = [worker.store.ensure(*item, show, StopSignal(LONG_S)) for item in sources(worker, spec)]
    OUT.print(f"{spec.id}: {files.total_bytes / 1e9:.2f} GB at revision {files.revision or 'local'}")


@cache_app.command("rm")
def cache_rm(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Remove a model from the volume, whether it is in use or not."""
    cache, entries = _entries(model)
    freed = sum(cache.remove(entry) for entry in entries)
    OUT.print(f"{freed / 1e9:.2f} GB freed")


@cache_app.command("pin")
def cache_pin(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Never evict a model to make room."""
    cache, entries = _entries(model)
    for entry in entries:
        cache.pin(entry, pinned=True)
    _report(entries, "is pinned")


@cache_app.command("unpin")
def cache_unpin(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Let a model be evicted again."""
    cache, entries = _entries(model)
    for entry in entries:
        cache.pin(entry, pinned=False)
    _report(entries, "is not pinned")


@cache_app.command("verify")
def cache_verify(
    model: Annotated[str | None, typer.Argument(help="A name that `cache ls` shows, or org/repo; else all.")] = None,
) -> None:
    """Hash every file again. Damaged files are removed, and fetched anew when they are next needed."""
    cache, entries = _entries(model) if model else (build_cache(settings_or_exit()), None)
    table = Table("model", "files", "GB", "damaged")
    damaged = 0
    for entry in cache.entries() if entries is None else entries:
        wrong = cache.damaged(entry)
        damaged += len(wrong)
        size = f"{entry.total_bytes / 1e9:.2f}"
        table.add_row(entry.name, str(len(entry.files)), size, escape("\n".join(wrong)) if wrong else "none")
    OUT.print(table)
    if damaged:
        fail(f"{damaged} damaged files were removed; the next job that needs them fetches them again.")


@cache_app.command("prune")
def cache_prune(
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="How long nobody may have touched it; downloads that go on are younger.")
    ] = GARBAGE_AGE_S / 3600,
) -> None:
    """Remove the leftovers of broken downloads, and files that belong to no model."""
    swept = build_cache(settings_or_exit()).prune(older_than_hours * 3600)
    OUT.print(f"{swept.files} files, {swept.total_bytes / 1e9:.2f} GB freed")


def _columns(files: int, total_bytes: int, last_used: float) -> tuple[str, str, str]:
    return str(files), f"{total_bytes / 1e9:.2f}", f"{datetime.fromtimestamp(last_used):%Y-%m-%d %H:%M}"


def _report(entries: list[Entry], state: str) -> None:
    for entry in entries:
        if not entry.details.get(ASIDE):
            OUT.print(f"{entry.name} {state}", highlight=False, soft_wrap=True)


def _entries(model: str) -> tuple[VolumeCache, list[Entry]]:
    """Return the entries that an operator names, by their own name or the registry's, and their cache."""
    settings = settings_or_exit()
    cache = build_cache(settings)
    entries = cache.matching(model)
    if not entries:
        spec = _registry(settings).find(model)
        entries = cache.matching(spec.source.locator) if spec is not None else []
    if not entries:
        fail(f"{model} is not in the cache; see `python -m worker cache ls`.")
    return cache, entries


def _registry(settings: Settings) -> Registry:
    try:
        return build_registry(settings)
    except (RegistryError, SettingsError) as error:
        fail(str(error))
