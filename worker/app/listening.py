"""The sockets that the HTTP server listens on, and as many connections as this process may have open files."""

import socket

from worker.app.settings import Settings, SettingsError
from worker.transport.web.connections import ConnectionLimits

# Longer than callers wait before they come back (Retry-After), and than the minute after which proxies give an idle
# connection up: one that the server closes just when it is used again looks like a lost request.
KEEP_ALIVE_S = 75
# Open files that are no connections: models, the cache, links to the Hub.
_OTHER_FILES = 256


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to this address. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "no such address"
        raise SettingsError(f"API_HOST and API_PORT: {host}:{port} cannot be listened on ({reason}).") from None
    return listening


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits on connections: the operator's, and what the system lets this process open."""
    most = min(settings.max_connections, max(1, _open_files(settings.max_connections + _OTHER_FILES) - _OTHER_FILES))
    return ConnectionLimits(most, min(settings.max_connections_per_address, most), keep_alive_s=KEEP_ALIVE_S)


def _open_files(wanted: int) -> int:
    """Return how many files this process may open, after raising that to `wanted` where the system lets it."""
    try:
        import resource
    except ImportError:  # not on Windows, where sockets are no files
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return soft
    return most
