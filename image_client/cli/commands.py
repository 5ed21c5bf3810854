"""All commands of `image-client`."""

import typer

from image_client.cli import batches, comparing, costs, generating, reviewing
from image_client.cli.options import with_options

app = typer.Typer(
    help="Images from your own worker and from everybody's image API, within a budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    generating.generate,
    generating.edit,
    batches.batch,
    batches.resume,
    reviewing.review,
    costs.cost,
    comparing.providers,
    comparing.compare,
):
    app.command()(with_options(command))
