"""A worker for one command, and failures in a terminal's words."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.words import spoken
from worker.app.settings import Settings, SettingsError, read_settings
from worker.catalog.operator_file import FileError
from worker.core.answer import AnyAnswer
from worker.core.errors import WorkerError
from worker.core.unsearched import unsearched
from worker.transport.job_input import read_input
from worker.wire.errors import encode_error

if TYPE_CHECKING:
    from worker.app.build import Worker

LONG_S = 86_400.0  # the limit of a download at the terminal


@contextmanager
def failures(terminal: Terminal, typed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what the worker refuses into the failure of a command. `typed` are the options by their fields."""
    try:
        yield
    except (FileError, SettingsError) as error:
        raise Failure(str(error)) from None
    except WorkerError as error:
        text = f"{error.message}{f' {error.hint}' if error.hint else ''}"
        body = encode_error(error, "cli")
        del body["request_id"]
        raise Failure(spoken(text, typed or {}, terminal.prog), body) from None


def settings_of(terminal: Terminal) -> Settings:
    """Read the environment. Raises Failure with the reason where it has a mistake."""
    with failures(terminal):
        return read_settings()


@contextmanager
def open_worker(
    terminal: Terminal,
    *,
    unregistered: bool = False,
    locked: bool = True,
    roots: Sequence[Path] = (),
    typed: Mapping[str, str] | None = None,
    further: Mapping[str, object] = MappingProxyType({}),
) -> Iterator["Worker"]:
    """Open a worker for one command; its user may name any model of the Hub, and the files in `roots`.

    `further` replaces settings: what holds for callers need not hold at the operator's own terminal.
    """
    settings = settings_of(terminal).without_response_limit()
    changes: dict[str, object] = dict(further) | {"allowed_model_dirs": (*settings.allowed_model_dirs, *roots)}
    if unregistered:
        changes["allow_unregistered_models"] = True
    if not locked:
        changes["models_lock"] = Path("off")
    logging.disable(logging.WARNING)
    with failures(terminal, typed):
        with unsearched():
            from worker.app.build import build_worker  # late: not every question needs a worker

            worker = build_worker(settings.model_copy(update=changes))
        yield worker


def perform(worker: "Worker", terminal: Terminal, payload: Mapping[str, Any], caller: str | None = None) -> AnyAnswer:
    """Answer one job input. Raises WorkerError."""
    return asyncio.run(worker.operations.perform(read_input(dict(payload)), "cli", terminal.show, caller))
