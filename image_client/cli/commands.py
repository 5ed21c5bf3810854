"""All commands of `image-client`."""

import typer

from image_client.cli.batches import batch, resume
from image_client.cli.comparing import compare, providers
from image_client.cli.costs import cost
from image_client.cli.generating import edit, generate
from image_client.cli.options import with_options
from image_client.cli.reviewing import review

app = typer.Typer(
    help="Images from your own worker and from everybody's image API, within a budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (generate, edit, batch, resume, review, cost, providers, compare):
    app.command()(with_options(command))
