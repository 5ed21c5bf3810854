"""The rules that keep a request away from the worker's own network: the URLs and addresses that may be opened.

A name is resolved once, every address is checked, and the connection goes to an address that was checked. No message
here names a host or an address.
"""

import contextlib
import ipaddress
import queue
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_URL_CHARS = 4_096
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "image-worker"  # no browser's: some sites answer those with a login page
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are the real address
# IANA's special-purpose registries, both families, as of 2026; `ipaddress` knows fewer in older Pythons. Those that are
# globally reachable by their entry (anycast of AS112, AMT, TURN) are no servers of images or models either.
_SPECIAL_V4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    "168.63.129.16/32",  # in no registry: Azure's machines reach their host's agent there
)
# Within the global unicast space; what is outside of it (mapped, unique local, link local, multicast, 5f00::/16) is
# refused as a whole. The first has Teredo, benchmarks, ORCHID and DRIP; 2002 is 6to4: tunnels to who knows where.
_SPECIAL_V6 = ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_REFUSED = tuple(ipaddress.ip_network(network) for network in (*_SPECIAL_V4, *_SPECIAL_V6))
# ISATAP writes an IPv4 address behind these 32 bits of an interface's id, in any network.
_ISATAP = (0x00005EFE, 0x02005EFE)


class RefusedUrl(PermissionError):
    """A URL that is not opened; the message is the reason, as the second half of a sentence."""


class UnknownHost(ConnectionError):
    """A URL whose name has no address."""


class BrokenOff(ConnectionError):
    """A body that ended before its declared length."""

    def __init__(self) -> None:
        super().__init__("its server broke off")


@dataclass(frozen=True, slots=True)
class Destination:
    """A checked URL: its name, the addresses to connect to, and the target to request there."""

    host: str
    port: int
    addresses: tuple[str, ...]
    target: str
    tls: bool


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Take `url` apart if it is a plain one; `allow_private` also takes http. Raises RefusedUrl.

    A space is sent as %20, as browsers do; one in the name of a host is refused.
    """
    if len(url) > MAX_URL_CHARS:
        raise RefusedUrl(f"it is longer than {MAX_URL_CHARS} characters")
    if "\\" in url or any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise RefusedUrl("it is no plain URL")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RefusedUrl("it is no valid URL") from None
    schemes = {"https", "http"} if allow_private else {"https"}
    if parts.scheme not in schemes or not parts.hostname:
        raise RefusedUrl("only https URLs are fetched")
    if parts.username is not None or " " in parts.netloc:
        raise RefusedUrl("it is no plain URL")
    return parts


def resolve(parts: SplitResult, *, allow_private: bool, deadline: float) -> Destination:
    """Look the host of a checked URL up, once, and check every address.

    Raises RefusedUrl for a private address, UnknownHost for a name without one, TimeoutError.
    """
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    try:
        # One spelling of the name: the one that is looked up is the one that the server hears.
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
        addresses = _addresses(host, port, deadline)
    except TimeoutError:
        raise
    except (OSError, UnicodeError):
        raise UnknownHost("its server cannot be reached") from None
    if not allow_private and not all(is_public(address) for address in addresses):
        raise RefusedUrl("its host is not a public one")
    return Destination(host, port, addresses, request_target(parts), tls)


def request_target(parts: SplitResult) -> str:
    """Return path and query as they go on the wire; quoted characters stay as they are."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(path, safe="/%?&=+:;,@!$'()*~[]|")


def join_url(url: str, location: str) -> str:
    """Return the URL that a redirect leads to. Raises RefusedUrl."""
    try:
        return urljoin(url, location.strip().replace(" ", "%20"))  # browsers take a space there too
    except ValueError:
        raise RefusedUrl("it redirects to no valid URL") from None


def seconds_left(deadline: float) -> float:
    """Return the seconds until `deadline`, a time of `time.monotonic`. Raises TimeoutError when it has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("its server did not answer in time")
    return remaining


def is_public(address: str) -> bool:
    """True if an IP address belongs to a host of the public internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_UNICAST or int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
            return False
    return ip.is_global and not ip.is_reserved and not any(ip in network for network in _REFUSED)


def _addresses(host: str, port: int, deadline: float) -> tuple[str, ...]:
    """Return the addresses of a name. The lookup has no timeout of its own: when late, it is left in its thread."""
    results: queue.SimpleQueue[tuple[str, ...] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            results.put(tuple(dict.fromkeys(str(item[4][0]) for item in infos)))
        except Exception as error:
            results.put(error)

    threading.Thread(target=look_up, name="lookup", daemon=True).start()
    result: tuple[str, ...] | Exception = TimeoutError("its server did not answer in time")
    with contextlib.suppress(queue.Empty):
        result = results.get(timeout=seconds_left(deadline))
    if isinstance(result, Exception):
        raise result
    return result
