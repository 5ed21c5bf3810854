"""Where an output URL may lead: https at public addresses, or the provider's own host. Nothing private, no tricks.

A name is resolved once, all its addresses are checked, and the connection goes to one that was.
"""

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS = 8192
_ODD = re.compile(r"[\x00-\x20\x7f\\]")
# Neither is marked as private by `ipaddress`: tunnels and translators to who knows where, and Azure's host agent.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in ("168.63.129.16/32", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class RefusedLink(Exception):
    """A URL that is not opened; the message is the reason, as the second half of a sentence."""


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL with an address in place of its host, and the names for Host and for the certificate."""

    url: str
    host: str
    server_name: str


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public internet."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.is_multicast or not found.is_global or any(found in network for network in _REFUSED):
        return False
    return isinstance(found, ipaddress.IPv4Address) or found in _GLOBAL_UNICAST


async def checked(url: str, own: SplitResult) -> Target:
    """Resolve and check an output URL; `own` is the provider's base URL, whose host may be private and speak http.

    Raises RefusedLink, OSError where the name has no address.
    """
    parts, at_home = _taken_apart(url, own)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = (parts.hostname or "").lower()
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not at_home and not all(is_public(address) for address in addresses):
        raise RefusedLink("its host is not a public one")
    address = addresses[0]
    shown = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{shown}:{port}", fragment="").geturl()
    return Target(target, parts.netloc, host)


def _taken_apart(url: str, own: SplitResult) -> tuple[SplitResult, bool]:
    """Return the parts of a plain URL, and whether it leads to the provider's own host."""
    if len(url) > MAX_URL_CHARS or _ODD.search(url):
        raise RefusedLink("it is no plain URL")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RefusedLink("it is no valid URL") from None
    at_home = parts.hostname is not None and parts.hostname == own.hostname
    if not parts.hostname or parts.username is not None or parts.scheme not in ("https", "http"):
        raise RefusedLink("it is no plain https URL")
    if parts.scheme == "http" and not (at_home and own.scheme == "http"):
        raise RefusedLink("it is not https")
    return parts, at_home
