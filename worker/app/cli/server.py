"""Commands around the server: serve, usage, keys."""

from argparse import Namespace
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from worker.app.cli.session import settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.service.limits.api_keys import KeyListError, new_key
from worker.service.usage.bars import draw_bars
from worker.service.usage.log import Sum, read_jobs, sum_usage


def serve(arguments: Namespace, terminal: Terminal) -> None:
    """Answer over HTTP until stopped."""
    from worker.app.processes import serve as listen  # the web framework is not for the other commands

    settings = settings_of(terminal)
    terminal.rest()
    listen(settings)


def gateway(arguments: Namespace, terminal: Terminal) -> None:
    """Answer over HTTP for the workers of fleet.yaml until stopped."""
    from worker.app.processes import serve as listen

    changes: dict[str, object] = {"gateway_mode": True}
    if arguments.fleet is not None:
        changes["fleet_file"] = Path(arguments.fleet)
    settings = settings_of(terminal).model_copy(update=changes)
    terminal.rest()
    listen(settings)


def new_keys(arguments: Namespace, terminal: Terminal) -> None:
    """Make an API key: for its owner the key, which is kept nowhere, and for API_KEYS_FILE its line."""
    try:
        key, line = new_key(arguments.name)
    except KeyListError as error:
        raise Failure(str(error)) from None
    terminal.print(f"key:  {key}\nline: {line}")


def usage(arguments: Namespace, terminal: Terminal) -> None:
    """Add up the usage log, by day, model or caller."""
    by, days = arguments.by, arguments.days
    if days < 1:
        raise Failure(f"--days must be at least 1; {days} was given.")
    folder = settings_of(terminal).usage_dir
    since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
    sums = sum_usage(read_jobs(folder, since), by)
    if arguments.json:
        terminal.json([{by: key, **asdict(total)} for key, total in sums.items()])
    else:
        head = (by, "jobs", "failed", "images", "GPU s", "Mpx-steps", "GB fetched", "USD")
        terminal.table(head, [_row(key, total) for key, total in sums.items()])
    if arguments.plot is not None:
        seconds = {key: total.gpu_seconds for key, total in sums.items()}
        _write(Path(arguments.plot), draw_bars(f"GPU seconds by {by} since {since}", seconds, "s"))
        if not arguments.json:
            terminal.print(arguments.plot)


def _row(key: str, total: Sum) -> tuple[str, ...]:
    counts = (str(number) for number in (total.jobs, total.failed, total.images))
    amounts = (total.gpu_seconds, total.pixel_steps / 1e6, total.bytes_downloaded / 1e9)
    cost = "-" if total.cost_usd is None else f"{total.cost_usd:.4f}"
    return (key, *counts, *(f"{amount:,.2f}" for amount in amounts), cost)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Failure(f"--plot: {path} cannot be written ({error.strerror}); name another file.") from None
