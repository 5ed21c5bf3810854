"""What keeps a request away from the worker's own network: which URLs may be opened, and at which addresses.

A name is resolved once, every address is checked, and the connection goes to an address that was checked. No message
here names a host or an address.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_URL_CHARS = 4_096
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "image-worker"  # no browser's: to those some sites answer with a login page
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are the real address
# Python before 3.11.9 calls these global; one of them is a cloud's metadata service.
_SPECIAL = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("192.88.99.0/24"))
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class RefusedUrl(PermissionError):
    """A URL that is not opened; the message is the reason, as the second half of a sentence."""


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Take `url` apart if it is a plain one; `allow_private` also takes http. Raises RefusedUrl."""
    if len(url) > MAX_URL_CHARS:
        raise RefusedUrl(f"it is longer than {MAX_URL_CHARS} characters")
    if "\\" in url or any(ord(char) <= 32 or ord(char) == 127 for char in url):
        raise RefusedUrl("it is no plain URL")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RefusedUrl("it is no valid URL") from None
    schemes = {"https", "http"} if allow_private else {"https"}
    if parts.scheme not in schemes or not parts.hostname:
        raise RefusedUrl("only https URLs are fetched")
    if parts.username is not None:
        raise RefusedUrl("it is no plain URL")
    return parts


def connect(parts: SplitResult, *, allow_private: bool, deadline: float) -> "PinnedConnection":
    """A connection, not yet open, to the addresses behind a checked URL.

    Raises RefusedUrl for a private address, socket.gaierror for a name that is not found.
    """
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise socket.gaierror("its host cannot be found") from None
    addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
    if not allow_private and not all(is_public(address) for address in addresses):
        raise RefusedUrl("its host is not a public one")
    return PinnedConnection(host, port, addresses, tls=parts.scheme == "https", deadline=deadline)


def request_target(parts: SplitResult) -> str:
    """Path and query as they go on the wire; what is quoted already stays as it is."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(path, safe="/%?&=+:;,@!$'()*~[]|")


def join_url(url: str, location: str) -> str:
    """Where a redirect leads. Raises RefusedUrl."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise RefusedUrl("it redirects to no valid URL") from None


def seconds_left(deadline: float) -> float:
    """Seconds until `deadline`, a time of `time.monotonic`. Raises TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    return left


class PinnedConnection(http.client.HTTPConnection):
    """Connects to the addresses that were checked, and speaks as if it had been the name."""

    def __init__(self, host: str, port: int, addresses: list[str], *, tls: bool, deadline: float) -> None:
        super().__init__(host, port)
        self._addresses, self._tls, self._deadline = addresses, tls, deadline
        self._pinned: socket.socket | None = None
        self.aborted = False

    def connect(self) -> None:
        """Open the socket to the first pinned address that answers."""
        for address in self._addresses:
            try:
                self.sock = self._pinned = socket.create_connection((address, self.port), seconds_left(self._deadline))
                break
            except OSError:
                if address == self._addresses[-1]:
                    raise
        if self._tls:
            # The handshake comes after the socket is known to abort(): it can be made to trickle like all else.
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._pinned = self.sock
            if self.aborted:
                raise TimeoutError
            self.sock.do_handshake()

    def limit_reads(self, timeout_s: float) -> None:
        """Let no single read take longer, from now on."""
        if self._pinned is not None:
            self._pinned.settimeout(timeout_s)

    def abort(self) -> None:
        """Shut the socket from another thread: whatever reads from it fails at once."""
        self.aborted = True
        # Not self.sock: http.client forgets it as soon as it knows that the body ends with the connection.
        if self._pinned is not None:
            with contextlib.suppress(OSError):
                # Below TLS, whose own shutdown would pull the session away from under the reader.
                socket.socket.shutdown(self._pinned, socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the public internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_UNICAST or ip.sixtofour or ip.teredo:
            return False  # mapped, local, multicast, or a tunnel to who knows where
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in net for net in _SPECIAL)
