"""Commands around the server: serve, usage, keys."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from worker.app.cli.terminal import OUT, fail, settings_or_exit
from worker.service.limits.api_keys import KeyListError, new_key
from worker.service.usage.bars import draw_bars
from worker.service.usage.log import By, read_usage, sum_usage

app = typer.Typer()
keys_app = typer.Typer(no_args_is_help=True, help="API keys of the HTTP server.")
app.add_typer(keys_app, name="keys")


@app.command()
def serve() -> None:
    """Answer over HTTP until stopped; API_HOST and API_PORT say where."""
    from worker.app.server import serve as listen  # the web framework is not for the other commands

    listen(settings_or_exit())


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Whose it is; shown nowhere but in the operator's files.")],
) -> None:
    """Make an API key: for its owner the key, which is kept nowhere, and for API_KEYS_FILE its line."""
    try:
        key, line = new_key(name)
    except KeyListError as error:
        fail(str(error))
    print(f"key:  {key}\nline: {line}")  # noqa: T201


@app.command()
def usage(
    by: Annotated[By, typer.Option(help="What each line is of.")] = "day",
    days: Annotated[int, typer.Option(min=1, help="How many days back, today included.")] = 30,
    plot: Annotated[Path | None, typer.Option(help="A PNG to draw GPU seconds into.", dir_okay=False)] = None,
) -> None:
    """Add up the usage log, by day, model or caller; every worker of the volume counts."""
    folder = settings_or_exit().usage_dir
    since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
    sums = sum_usage(read_usage(folder, since), by)
    key_column = Column(by, overflow="fold")  # half a name adds nothing up
    table = Table(
        key_column, *("jobs", "failed", "images", "GPU s", "Mpx-steps", "GB fetched", "USD"), title=escape(str(folder))
    )
    for key, total in sums.items():
        cost = "-" if total.cost_usd is None else f"{total.cost_usd:.4f}"
        counts = (str(number) for number in (total.jobs, total.failed, total.images))
        amounts = (total.gpu_seconds, total.pixel_steps / 1e6, total.bytes_downloaded / 1e9)
        table.add_row(escape(key), *counts, *(f"{amount:,.2f}" for amount in amounts), cost)
    OUT.print(table)
    if plot is not None:
        seconds = {key: total.gpu_seconds for key, total in sums.items()}
        plot.write_bytes(draw_bars(f"GPU seconds by {by} since {since}", seconds, "s"))
        OUT.print(f"{plot}", highlight=False, soft_wrap=True)
