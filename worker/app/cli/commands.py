"""All commands, as one program."""

import typer

from worker.app.cli import cache, jobs, server

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Universal Image Model Worker"
)
for group in (jobs, server, cache):
    app.add_typer(group.app)
