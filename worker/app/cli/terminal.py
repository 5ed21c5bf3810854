"""The terminal that commands share: a worker for one command, tables, progress bars, errors."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from worker.app.build import Worker, build_worker
from worker.app.settings import Settings, SettingsError, read_settings
from worker.catalog.registry import RegistryError
from worker.core.answer import AnyAnswer
from worker.core.errors import ModelNotFound, UnsupportedModel, WorkerError
from worker.core.model import ModelSource, ModelSpec
from worker.core.result import Emit, Progress
from worker.transport.job_input import read_input

OUT = Console()
ERR = Console(stderr=True)
LONG_S = 86_400.0  # the limit of a download at the terminal
_PHASES = {"download": "downloading", "load": "loading", "inference": "drawing", "encode": "encoding"}


@contextmanager
def open_worker(*, unregistered: bool = False, locked: bool = True) -> Iterator[Worker]:
    """Open a worker for one command; its user may name any model of the Hub."""
    settings = settings_or_exit().without_response_limit()
    if unregistered:
        settings = settings.model_copy(update={"allow_unregistered_models": True})
    if not locked:
        settings = settings.model_copy(update={"models_lock": Path("off")})
    logging.disable(logging.WARNING)
    try:
        yield build_worker(settings)
    except (RegistryError, SettingsError) as error:
        fail(str(error))
    except WorkerError as error:
        fail(f"{error.message}{f' {error.hint}' if error.hint else ''}")


def settings_or_exit() -> Settings:
    """Read the environment; end the program with the reason where it has a mistake."""
    try:
        return read_settings()
    except SettingsError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Print `message` and end the program with status 1."""
    ERR.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def perform(worker: Worker, payload: dict[str, Any], emit: Emit) -> AnyAnswer:
    """Answer one job input. Raises WorkerError."""
    return asyncio.run(worker.operations.perform(read_input(payload), "cli", emit))


def sources(worker: Worker, spec: ModelSpec) -> list[tuple[ModelSource, str | None]]:
    """Return all sources of a registry's model, itself first, each with its variant."""
    loras = [(lora.model, lora.weight_name) for lora in spec.loras]
    loras += [(spec.lightning.lora, None)] if spec.lightning else []
    adapters = [(worker.resolver.adapter_source(name, filename, "loras"), None) for name, filename in loras]
    try:
        model_sources = worker.provisioner.sources(worker.resolver.known(spec))
    except (UnsupportedModel, ModelNotFound):  # a companion, or a model that only another machine can run or has
        model_sources = worker.provisioner.adapter_sources(spec)
    return [*model_sources, *adapters]


@contextmanager
def progress_bars() -> Iterator[Emit]:
    """Show progress bars for downloads, loads and steps; updated from any thread."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=ERR, transient=True) as bars:
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


def ignore(progress: Progress) -> None:
    """Ignore progress, for commands without anything long to do."""
