"""The start of handler.py: as an HTTP server, or as a worker of RunPod's queue."""

from worker.app.queue import run_serverless
from worker.app.settings import SettingsError, read_settings


def run() -> None:
    """Serve jobs until the process is stopped: over HTTP with STANDALONE_MODE or GATEWAY_MODE, else RunPod's queue."""
    try:
        settings = read_settings()
    except SettingsError:
        run_serverless()  # which reports the error as its platform wants it
        return
    if not (settings.standalone_mode or settings.gateway_mode):
        run_serverless(settings)
        return
    from worker.app.processes import serve  # the queue's worker starts sooner without the web framework

    serve(settings)
