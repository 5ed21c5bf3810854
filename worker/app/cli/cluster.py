"""Commands for a Ray cluster."""

from argparse import Namespace

from worker.app.cli.session import failures, settings_of
from worker.app.cli.terminal import Failure, Terminal


def up(arguments: Namespace, terminal: Terminal) -> None:
    """Serve on Ray until stopped: the gateway, and workers that start with their first job."""
    try:
        from worker.app.ray_serve import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise Failure("Ray is not installed; `pip install 'ray[serve]==2.60.0'`, or this package's [ray].") from None
    settings = settings_of(terminal)
    terminal.rest()
    with failures(terminal):
        run(settings, arguments.address)
