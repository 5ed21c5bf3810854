"""The container's health check: `python -m worker.app.healthcheck` exits with 0 while the worker can do its work."""

import sys
import urllib.request

from worker.app.settings import Settings, SettingsError, read_settings


def address(settings: Settings) -> str | None:
    """Return the address to ask; None for a worker of RunPod's queue, which has none and is watched by RunPod."""
    if not (settings.standalone_mode or settings.gateway_mode):
        return None
    host = "127.0.0.1" if settings.api_host in ("0.0.0.0", "::") else settings.api_host  # noqa: S104 - compared
    return f"http://{host}:{settings.listening_ports[0]}/ping"


def healthy(url: str) -> bool:
    """Tell whether the server at `url` is ready or on its way: a model may take many minutes to download."""
    try:
        with urllib.request.urlopen(url, timeout=8) as answer:  # noqa: S310 - our own server
            return bool(answer.status in (200, 204))
    except OSError:  # refused, late, or an error status
        return False


def main() -> int:
    """Return 0 when healthy, else 1."""
    try:
        url = address(read_settings())
    except SettingsError:
        return 1
    return 0 if url is None or healthy(url) else 1


if __name__ == "__main__":
    sys.exit(main())
