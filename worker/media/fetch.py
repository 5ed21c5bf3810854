"""A GET that cannot be turned against the worker's own network: public addresses only, bounded in bytes and time.

The name is resolved once, every address is checked, and the connection goes to an address that was checked; each
redirect is checked anew. One total deadline, because a server that sends a byte a second defeats per-read timeouts.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from worker.core.errors import InvalidImage

MAX_URL_CHARS = 4_096
MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are the real address
# Python before 3.11.9 calls these global; one of them is a cloud's metadata service.
_SPECIAL = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("192.88.99.0/24"))
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class GuardedFetcher:
    """Fetches what callers name. `allow_private` also takes http and private addresses: an operator's choice."""

    def __init__(self, *, allow_private: bool = False, deadline_s: float = 20.0) -> None:
        self._allow_private = allow_private
        self._deadline_s = deadline_s

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """The body behind `url`. Raises InvalidImage with a sentence that names no address."""
        deadline = time.monotonic() + self._deadline_s
        for _ in range(MAX_REDIRECTS + 1):
            status, location, body = self._get(self._checked(url), max_bytes, deadline)
            if status in _REDIRECTS and location:
                url = _joined(url, location)
            elif status == 200:
                return body
            else:
                raise _failed(f"its server answered {status}")
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    def _checked(self, url: str) -> SplitResult:
        if len(url) > MAX_URL_CHARS:
            raise _failed(f"it is longer than {MAX_URL_CHARS} characters")
        if "\\" in url or any(ord(char) <= 32 or ord(char) == 127 for char in url):
            raise _failed("it is no plain URL")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise _failed("it is no valid URL") from None
        schemes = {"https", "http"} if self._allow_private else {"https"}
        if parts.scheme not in schemes or not parts.hostname:
            raise _failed("only https URLs are fetched")
        if parts.username is not None:
            raise _failed("it is no plain URL")
        return parts

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _failed("its host cannot be found") from None
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        if not self._allow_private and not all(_is_public(address) for address in addresses):
            raise _failed("its host is not a public one")
        return addresses

    def _get(self, parts: SplitResult, max_bytes: int, deadline: float) -> tuple[int, str | None, bytes]:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = self._addresses(host, port)
        connection = _PinnedConnection(host, port, addresses, tls=parts.scheme == "https", deadline=deadline)
        # Headers can trickle too: at the deadline the socket is shut, whatever is being read.
        watchdog = threading.Timer(_left(deadline), connection.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            # Identity: a compressed body could be a bomb.
            headers = {"Accept-Encoding": "identity", "User-Agent": "image-worker", "Connection": "close"}
            connection.request("GET", quote(path, safe="/%?&=+:;,@!$'()*~[]|"), headers=headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    return response.status, response.getheader("Location"), b""
                return 200, None, _read(response, max_bytes, deadline)
        except InvalidImage:
            raise
        except (OSError, http.client.HTTPException, UnicodeError, ValueError):
            raise _failed("its server did not deliver it in time") from None
        finally:
            watchdog.cancel()
            connection.close()


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to the addresses that were checked, and speaks as if it had been the name."""

    def __init__(self, host: str, port: int, addresses: list[str], *, tls: bool, deadline: float) -> None:
        super().__init__(host, port)
        self._addresses, self._tls, self._deadline = addresses, tls, deadline
        self._aborted = False
        self._pinned: socket.socket | None = None

    def connect(self) -> None:
        """Open the socket to the first pinned address that answers."""
        for address in self._addresses:
            try:
                self.sock = self._pinned = socket.create_connection((address, self.port), _left(self._deadline))
                break
            except OSError:
                if address == self._addresses[-1]:
                    raise
        if self._tls:
            # The handshake comes after the socket is known to abort(): it can be made to trickle like all else.
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._pinned = self.sock
            if self._aborted:
                raise TimeoutError
            self.sock.do_handshake()

    def abort(self) -> None:
        """Shut the socket from another thread: whatever reads from it fails at once."""
        self._aborted = True
        # Not self.sock: http.client forgets it as soon as it knows that the body ends with the connection.
        if self._pinned is not None:
            with contextlib.suppress(OSError):
                # Below TLS, whose own shutdown would pull the session away from under the reader.
                socket.socket.shutdown(self._pinned, socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    declared = response.getheader("Content-Length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _failed(f"it is over {max_bytes >> 20} MB")
    body = bytearray()
    while chunk := response.read1(65_536):
        body += chunk
        if len(body) > max_bytes:
            raise _failed(f"it is over {max_bytes >> 20} MB")
    _left(deadline)  # a shut socket looks like the end of a body of unknown length
    if declared.isdecimal() and len(body) != int(declared):
        raise _failed("its server broke off")
    if not body:
        raise _failed("its server sent nothing")
    return bytes(body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _failed("its server did not deliver it in time")
    return left


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _failed("it redirects to no valid URL") from None


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_UNICAST or ip.sixtofour or ip.teredo:
            return False  # mapped, local, multicast, or a tunnel to who knows where
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in net for net in _SPECIAL)


def _failed(reason: str) -> InvalidImage:
    return InvalidImage(f"The picture's URL cannot be fetched: {reason}; send the picture as base64.", field="image")
