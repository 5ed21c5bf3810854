"""The names that a server without keys answers to. It is open to whoever reaches it, and no web page may.

A page may give its own name the address of its reader's machine once it is loaded (DNS rebinding); its requests then
come from the same origin, and only the name in `Host` tells them from others.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from worker.core.errors import AccessDenied

# What public DNS does not have, so that no stranger can own a name in it: RFC 6761, 6762, 8375; `.internal`, which is
# reserved for private use; `.lan` and `.svc` (of Kubernetes), which are not delegated.
_PRIVATE_ZONES = (".localhost", ".local", ".internal", ".home.arpa", ".test", ".lan", ".svc")
# Names below these are RunPod's own: a stranger may be given one, and can still not say which address it has.
_PLATFORM_ZONES = (".proxy.runpod.net", ".api.runpod.ai")
# A name without a dot: localhost, or a service of compose, Docker or Kubernetes. No stranger can own one either.
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
# Load balancers ask here by whatever name, and learn one of four words.
_OPEN = "/ping"
_POLICY_VIOLATION = 1008


class HostNames:
    """The names of this server: `own` ones, also `*.example.com` or `*`, and those that no stranger can own."""

    def __init__(self, own: Collection[str] = ()) -> None:
        names = [_plain(name) for name in own]
        self._any = "*" in names
        self._own = frozenset(names)
        self._zones = (*_PRIVATE_ZONES, *_PLATFORM_ZONES, *(name[1:] for name in names if name.startswith("*.")))

    def check(self, connection: HTTPConnection) -> None:
        """Raise AccessDenied, or WebSocketException, for a request under another name. Browsers always send one."""
        if connection.scope["path"].removeprefix(connection.scope.get("root_path", "")) == _OPEN:
            return
        if all(self._has(host) for host in connection.headers.getlist("host")):
            return
        if connection.scope["type"] == "websocket":
            raise WebSocketException(_POLICY_VIOLATION)
        raise AccessDenied(
            "This worker has no API keys and does not know the name it was reached by, which may be a web page's; its "
            "operator can add the name to API_HOSTNAMES, set PUBLIC_URL, or set API_KEYS.",
            field="Host",
        )

    def _has(self, host: str) -> bool:
        name = _plain(_without_port(host))
        if self._any or not name or name in self._own or name.endswith(self._zones) or _LABEL.fullmatch(name):
            return True
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _plain(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and (":" not in name or name.endswith("]")) else host
