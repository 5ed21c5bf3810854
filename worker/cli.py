"""The worker in a terminal: run, inspect, plan, models, schema, cache."""

import asyncio
import base64
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from worker.app import Worker, build_worker
from worker.catalog.registry import RegistryError
from worker.core.errors import WorkerError
from worker.core.job import StopSignal
from worker.core.model import ModelSpec
from worker.core.result import Emit, Progress
from worker.settings import Settings, SettingsError, read_settings
from worker.store.cache import list_cache, remove_from_cache
from worker.store.refs import parse_reference
from worker.transport.serverless import save_picture

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Universal Image Model Worker"
)
cache_app = typer.Typer(no_args_is_help=True, help="Models on the volume.")
app.add_typer(cache_app, name="cache")

Model = Annotated[str | None, typer.Argument(help="A model id of models.yaml, an alias, or a reference.")]
_OUT = Console()
_ERR = Console(stderr=True)
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
    for index, text in enumerate(answer["images"]):
        uploaded = "image_url" in answer
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
def models() -> None:
    """List the models of models.yaml."""
    with _worker() as worker:
        answer = _perform(worker, {"action": "models"}, _quiet)
    table = Table("model", "aliases", "tasks", "family", "served")
    for entry in answer["models"]:
        aliases, tasks = ", ".join(entry["aliases"]), ", ".join(entry["tasks"])
        table.add_row(entry["id"], aliases, tasks, entry["architecture"] or "", "yes" if entry["served"] else "not yet")
    _OUT.print(table)


@cache_app.command("ls")
def cache_ls() -> None:
    """List what is on the volume."""
    settings = _settings()
    table = Table("repository", "revisions", "GB", "last used", title=str(settings.hub_cache))
    for repo in list_cache(settings.hub_cache):
        used = f"{datetime.fromtimestamp(repo.last_used):%Y-%m-%d %H:%M}"
        table.add_row(repo.name, ", ".join(item[:8] for item in repo.revisions), f"{repo.total_bytes / 1e9:.2f}", used)
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
        files = worker.store.ensure(spec.source, spec.variant, show, StopSignal(86_400))
        for reference in _companions(spec):
            worker.store.ensure(parse_reference(reference), None, show, StopSignal(86_400))
    _OUT.print(f"{spec.id}: {files.total_bytes / 1e9:.2f} GB at revision {files.revision or 'local'}")


@cache_app.command("rm")
def cache_rm(repository: Annotated[str, typer.Argument(help="org/repo, as `cache ls` shows it.")]) -> None:
    """Remove a repository from the volume."""
    freed = remove_from_cache(_settings().hub_cache, repository)
    if not freed:
        _fail(f"{repository} is not in the cache; see `python -m worker cache ls`.")
    _OUT.print(f"{freed / 1e9:.2f} GB freed")


def _companions(spec: ModelSpec) -> list[str]:
    own = [f"{lora.model}#{lora.weight_name}" if lora.weight_name else lora.model for lora in spec.loras]
    return own + ([spec.lightning.lora] if spec.lightning else [])


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
def _worker(*, unregistered: bool = False) -> Iterator[Worker]:
    """A worker for one command; whoever sits at the terminal may name any model of the Hub."""
    settings = _settings().without_response_limit()
    if unregistered:
        settings = settings.model_copy(update={"allow_unregistered_models": True})
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
