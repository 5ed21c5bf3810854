"""What a command shows and asks: results on stdout, all else on stderr, and no answer is taken for a yes."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from image_client.batch import Progress as BatchProgress
from image_client.errors import ImageClientError
from image_client.money import shown

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
REFUSED = 2


def fail(message: str, status: int = 1) -> NoReturn:
    """End the command with a sentence."""
    err.print(f"error: {message}", markup=False, style="red")
    raise typer.Exit(status)


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Tell a failure in one sentence, with what to do about it."""
    try:
        yield
    except ImageClientError as error:
        fail(f"{error.message} {error.hint}".strip())
    except KeyboardInterrupt:
        fail("Interrupted.", 130)


def alerts_shown() -> None:
    """Show the alerts of a budget, which are logged."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("image_client")
    if not logger.handlers:
        logger.addHandler(handler)


def agreed(question: str, *, yes: bool) -> bool:
    """Ask, and return whether the answer was yes. Without a terminal nobody can agree: that ends the command."""
    if yes:
        err.print(f"{question} yes", markup=False)
        return True
    if not sys.stdin.isatty():
        err.print(question, markup=False)
        fail("Nobody can answer that without a terminal: add --yes to agree beforehand.", REFUSED)
    err.print(f"{question} [y/N]", markup=False, end=" ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def table(*heads: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Show columns, each as wide as its widest cell: no cell is cut, whatever the terminal's width."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        out.print(text, markup=False, style=None if number else "bold")


class BatchBar:
    """The line of a batch: how many are drawn, how fast, until when, and for how much."""

    def __init__(self, total: int, drawn: int) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[cost]}{task.fields[more]}"),
            console=err,
            transient=False,
            disable=not err.is_terminal,
        )
        self._already = drawn
        self._task = self._bar.add_task("", total=total, completed=drawn, rate="-", cost="", more="")

    def __enter__(self) -> "BatchBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: BatchProgress) -> None:
        """Show where the batch is."""
        task = self._bar.tasks[0]
        elapsed = task.elapsed or 0
        done = progress.drawn + progress.failed + progress.unknown
        rate = f"{(progress.drawn - self._already) / elapsed:.1f}" if elapsed > 1 else "-"
        more = f"  {progress.in_flight} of {progress.allowed} at once"
        if progress.failed:
            more += f"  {progress.failed} failed"
        if progress.unknown:
            more += f"  {progress.unknown} unknown"
        self._bar.update(self._task, completed=done, rate=rate, cost=shown(progress.cost), more=more)
