"""The worker in a terminal: run, inspect, plan, models, schema, serve, lock, usage, cache, keys."""

import asyncio
import base64
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from worker.app import Worker, build_cache, build_registry, build_worker
from worker.catalog.registry import Registry, RegistryError
from worker.core.errors import ModelNotFound, UnsupportedModel, WorkerError
from worker.core.job import StopSignal
from worker.core.model import ModelSource, ModelSpec
from worker.core.result import Emit, Progress
from worker.media.bars import draw_bars
from worker.service.keys import KeyListError, new_key
from worker.service.ledger import By, read_usage, sum_usage
from worker.settings import Settings, SettingsError, read_settings
from worker.store.cache import VolumeCache
from worker.store.entries import ASIDE, Entry
from worker.store.janitor import GARBAGE_AGE_S
from worker.store.lockfile import Lockfile, lock_key
from worker.store.snapshot import list_repositories
from worker.transport.serverless import save_picture

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Universal Image Model Worker"
)
cache_app = typer.Typer(no_args_is_help=True, help="Models on the volume.")
app.add_typer(cache_app, name="cache")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of the HTTP server.")
app.add_typer(keys_app, name="keys")

Model = Annotated[str | None, typer.Argument(help="A model id of models.yaml, an alias, or a reference.")]
_OUT = Console()
_ERR = Console(stderr=True)
_LONG_S = 86_400.0  # what a download at the terminal may take
_PHASES = {"download": "downloading", "load": "loading", "inference": "drawing", "encode": "encoding"}


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id or reference.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.", exists=True, dir_okay=False)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA reference; may be repeated.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Any other field, as name=value with a JSON value.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the pictures.")] = None,
) -> None:
    """Draw pictures and save them."""
    fields: dict[str, Any] = {"prompt": prompt, "model": model, "seed": seed, "loras": [*(lora or [])]}
    if image is not None:
        fields["image"] = base64.b64encode(image.read_bytes()).decode()
    fields |= dict(_parameter(text) for text in param or [])
    with _worker(unregistered=True) as worker, _bars() as show:
        given = {name: value for name, value in fields.items() if value not in (None, [])}
        answer = _perform(worker, given, show)
    folder = output or worker.settings.outputs_dir
    for warning in answer.get("warnings") or []:
        _ERR.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    for index, text in enumerate(answer.get("videos") or answer["images"]):
        uploaded = "image_url" in answer or "video_url" in answer
        print(text if uploaded else save_picture(base64.b64decode(text), folder, answer, index))  # noqa: T201


@app.command()
def inspect(model: Model = None) -> None:
    """Say what a model is and how that is known; reads headers and JSON only."""
    _answer({"action": "inspect", "model": model})


@app.command()
def plan(model: Model = None) -> None:
    """Say what running a model here would take."""
    _answer({"action": "plan", "model": model})


@app.command()
def schema(model: Model = None) -> None:
    """Print the JSON Schema of a request for a model."""
    _answer({"action": "schema", "model": model})


@app.command()
def serve() -> None:
    """Answer over HTTP until stopped; API_HOST and API_PORT say where."""
    from worker.standalone import serve as listen  # the web framework is not for the other commands

    listen(_settings())


@app.command()
def models() -> None:
    """List the models of models.yaml."""
    with _worker() as worker:
        answer = _perform(worker, {"action": "models"}, _quiet)
    table = Table("model", "aliases", "tasks", "family", "served")
    for entry in answer["models"]:
        aliases, tasks = ", ".join(entry["aliases"]), ", ".join(entry["tasks"])
        table.add_row(entry["id"], aliases, tasks, entry["architecture"] or "", "yes" if entry["served"] else "not yet")
    _OUT.print(table)


@app.command()
def lock(
    output: Annotated[
        Path | None, typer.Option(help="The lockfile; models.lock beside models.yaml by default.")
    ] = None,
) -> None:
    """Write down the revision and the digests of every model of models.yaml, so that a deploy can be repeated."""
    with _worker(unregistered=True, locked=False) as worker, _bars() as show:
        stop = StopSignal(_LONG_S)
        wanted = [item for spec in worker.registry.models.values() for item in _sources(worker, spec)]
        found = {
            lock_key(source, variant): worker.store.lock(source, variant, show, stop)
            for source, variant in wanted
            if source.scheme != "file"  # the operator's own files: nobody else changes them
        }
        path = output or _settings().lock_file or worker.settings.models_yaml.with_name("models.lock")
        Lockfile(found).write(path)
    _OUT.print(f"{path}: {len(found)} locked", highlight=False, soft_wrap=True)


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Whose it is; shown nowhere but in the operator's files.")],
) -> None:
    """Make an API key: for its owner the key, which is kept nowhere, and for API_KEYS_FILE its line."""
    try:
        key, line = new_key(name)
    except KeyListError as error:
        _fail(str(error))
    print(f"key:  {key}\nline: {line}")  # noqa: T201


@app.command()
def usage(
    by: Annotated[By, typer.Option(help="What each line is of.")] = "day",
    days: Annotated[int, typer.Option(min=1, help="How many days back, today included.")] = 30,
    plot: Annotated[Path | None, typer.Option(help="A PNG to draw GPU seconds into.", dir_okay=False)] = None,
) -> None:
    """Add up what was drawn, by day, model or caller; every worker of the volume counts."""
    folder = _settings().usage_dir
    since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
    found = sum_usage(read_usage(folder, since), by)
    key_column = Column(by, overflow="fold")  # half a name adds nothing up
    table = Table(
        key_column, *("jobs", "failed", "images", "GPU s", "Mpx-steps", "GB fetched", "USD"), title=escape(str(folder))
    )
    for key, total in found.items():
        cost = "-" if total.cost_usd is None else f"{total.cost_usd:.4f}"
        counts = (str(number) for number in (total.jobs, total.failed, total.images))
        amounts = (total.gpu_seconds, total.pixel_steps / 1e6, total.bytes_downloaded / 1e9)
        table.add_row(escape(key), *counts, *(f"{amount:,.2f}" for amount in amounts), cost)
    _OUT.print(table)
    if plot is not None:
        seconds = {key: total.gpu_seconds for key, total in found.items()}
        plot.write_bytes(draw_bars(f"GPU seconds by {by} since {since}", seconds, "s"))
        _OUT.print(f"{plot}", highlight=False, soft_wrap=True)


@cache_app.command("ls")
def cache_ls() -> None:
    """List what is on the volume, and the models that other programs keep where the worker finds them."""
    settings = _settings()
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
    _OUT.print(table)


@cache_app.command("pull")
def cache_pull(
    model: Annotated[str, typer.Argument(help="A model id or reference.")],
    revision: Annotated[str | None, typer.Option(help="A commit, branch or tag.")] = None,
) -> None:
    """Download a model, so that the first job finds it."""
    with _worker(unregistered=True) as worker, _bars() as show:
        spec = worker.resolver.resolve(model)
        if revision is not None:
            spec = spec.model_copy(update={"source": spec.source.model_copy(update={"revision": revision})})
        files, *_ = [worker.store.ensure(*item, show, StopSignal(_LONG_S)) for item in _sources(worker, spec)]
    _OUT.print(f"{spec.id}: {files.total_bytes / 1e9:.2f} GB at revision {files.revision or 'local'}")


@cache_app.command("rm")
def cache_rm(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Remove a model from the volume, whether it is in use or not."""
    cache, found = _entries(model)
    freed = sum(cache.remove(entry) for entry in found)
    _OUT.print(f"{freed / 1e9:.2f} GB freed")


@cache_app.command("pin")
def cache_pin(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Never evict a model to make room."""
    cache, found = _entries(model)
    for entry in found:
        cache.pin(entry, pinned=True)
    _tell_of(found, "is pinned")


@cache_app.command("unpin")
def cache_unpin(model: Annotated[str, typer.Argument(help="A name that `cache ls` shows, or org/repo.")]) -> None:
    """Let a model be evicted again."""
    cache, found = _entries(model)
    for entry in found:
        cache.pin(entry, pinned=False)
    _tell_of(found, "is not pinned")


@cache_app.command("verify")
def cache_verify(
    model: Annotated[str | None, typer.Argument(help="A name that `cache ls` shows, or org/repo; else all.")] = None,
) -> None:
    """Hash every file again. What is damaged is removed, and fetched anew when it is next needed."""
    cache, found = _entries(model) if model else (build_cache(_settings()), None)
    table = Table("model", "files", "GB", "damaged")
    damaged = 0
    for entry in cache.entries() if found is None else found:
        wrong = cache.damaged(entry)
        damaged += len(wrong)
        size = f"{entry.total_bytes / 1e9:.2f}"
        table.add_row(entry.name, str(len(entry.files)), size, escape("\n".join(wrong)) if wrong else "none")
    _OUT.print(table)
    if damaged:
        _fail(f"{damaged} damaged files were removed; the next job that needs them fetches them again.")


@cache_app.command("prune")
def cache_prune(
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="How long nobody may have touched it; downloads that go on are younger.")
    ] = GARBAGE_AGE_S / 3600,
) -> None:
    """Remove what broken downloads left behind, and files that belong to no model."""
    swept = build_cache(_settings()).prune(older_than_hours * 3600)
    _OUT.print(f"{swept.files} files, {swept.total_bytes / 1e9:.2f} GB freed")


def _columns(files: int, total_bytes: int, last_used: float) -> tuple[str, str, str]:
    return str(files), f"{total_bytes / 1e9:.2f}", f"{datetime.fromtimestamp(last_used):%Y-%m-%d %H:%M}"


def _tell_of(entries: list[Entry], what: str) -> None:
    for entry in entries:
        if not entry.details.get(ASIDE):
            _OUT.print(f"{entry.name} {what}", highlight=False, soft_wrap=True)


def _entries(model: str) -> tuple[VolumeCache, list[Entry]]:
    """The entries that are meant, by their own name or the registry's, and the cache they are in."""
    settings = _settings()
    cache = build_cache(settings)
    found = cache.matching(model)
    if not found:
        spec = _registry(settings).find(model)
        found = cache.matching(spec.source.locator) if spec is not None else []
    if not found:
        _fail(f"{model} is not in the cache; see `python -m worker cache ls`.")
    return cache, found


def _registry(settings: Settings) -> Registry:
    try:
        return build_registry(settings)
    except (RegistryError, SettingsError) as error:
        _fail(str(error))


def _sources(worker: Worker, spec: ModelSpec) -> list[tuple[ModelSource, str | None]]:
    """Everything that a model of the registry consists of, itself first: sources, each with its variant."""
    loras = [(lora.model, lora.weight_name) for lora in spec.loras]
    loras += [(spec.lightning.lora, None)] if spec.lightning else []
    adapters = [(worker.resolver.adapter_source(name, filename, "loras"), None) for name, filename in loras]
    try:
        own = worker.provisioner.sources(spec, worker.resolver.detect(spec))
    except (UnsupportedModel, ModelNotFound):  # beside a model, or what only another machine can run, or has
        own = worker.provisioner.adapter_sources(spec)
    return [*own, *adapters]


def _answer(payload: dict[str, Any]) -> None:
    with _worker(unregistered=True) as worker:
        answer = _perform(worker, {name: value for name, value in payload.items() if value is not None}, _quiet)
    _OUT.print_json(json.dumps(answer))


def _perform(worker: Worker, payload: dict[str, Any], emit: Emit) -> dict[str, Any]:
    return asyncio.run(worker.actions.perform(payload, "cli", emit))


def _parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        _fail(f"--param {text!r} is not name=value.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@contextmanager
def _worker(*, unregistered: bool = False, locked: bool = True) -> Iterator[Worker]:
    """A worker for one command; whoever sits at the terminal may name any model of the Hub."""
    settings = _settings().without_response_limit()
    if unregistered:
        settings = settings.model_copy(update={"allow_unregistered_models": True})
    if not locked:
        settings = settings.model_copy(update={"models_lock": Path("off")})
    logging.disable(logging.WARNING)
    try:
        yield build_worker(settings)
    except (RegistryError, SettingsError) as error:
        _fail(str(error))
    except WorkerError as error:
        _fail(f"{error.message}{f' {error.hint}' if error.hint else ''}")


def _settings() -> Settings:
    try:
        return read_settings()
    except SettingsError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _ERR.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


@contextmanager
def _bars() -> Iterator[Emit]:
    """Progress bars for downloads, loads and steps; updated from any thread."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=_ERR, transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(progress: Progress) -> None:
            megabytes = progress.phase == "download"
            step, total = (n // 2**20 if megabytes else n for n in (progress.step, progress.total))
            key = (progress.phase, progress.message)
            if key not in tasks:
                unit = " MiB" if megabytes else ""
                tasks[key] = bars.add_task(f"{_PHASES[progress.phase]} {progress.message}{unit}", total=total)
            bars.update(tasks[key], completed=step, total=total)

        yield show


def _quiet(progress: Progress) -> None:
    """For commands without anything long to do."""
