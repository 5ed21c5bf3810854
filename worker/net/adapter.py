"""One request over `requests`, to an address that was checked.

Only the adapter of `requests` is used. Its Session would bring cookies, proxies and passwords from the environment, and
unchecked redirects, whose bodies it reads to their end. All of its exceptions, and urllib3's, become ours
here; the client imports this module late, because `requests` takes its time.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from worker.net.guard import BrokenOff, Destination, seconds_left
from worker.net.watchdog import Watchdog


class Exchange:
    """The answer to one request. Raises TimeoutError and ConnectionError, in words that name no host."""

    def __init__(self, adapter: "_Adapter", raw: urllib3.BaseHTTPResponse) -> None:
        self._adapter, self._raw = adapter, raw
        self.status: int = raw.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in raw.headers.items()}
        self.length: int | None = raw.length_remaining
        """Bytes of the body, where they are declared."""
        self.is_chunked: bool = raw.chunked
        """Lines stand between the pieces of the body."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of the body as they were sent, as soon as any have arrived; b"" at the end."""
        with _mapped("its server stopped sending", "its server broke off"):
            return self._raw.read1(size, decode_content=False)

    def close(self) -> None:
        """End the connection; the unread rest is never sent."""
        with contextlib.suppress(OSError, urllib3.exceptions.HTTPError):
            self._raw.close()
        self._adapter.close()


@dataclass(frozen=True, slots=True)
class Pin:
    """The checked destination of one request's connection, and the watchdog that ends it."""

    destination: Destination
    tls: ssl.SSLContext | None
    watchdog: Watchdog
    deadline: float

    def connect(self) -> socket.socket:
        """Open a socket to the first checked address that answers."""
        addresses, port = self.destination.addresses, self.destination.port
        for address in addresses:
            try:
                opened = socket.create_connection((address, port), seconds_left(self.deadline))
                break
            except OSError:
                if address == addresses[-1]:
                    raise
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a body waits for its head's receipt
            self.watchdog.watch(opened)
        except OSError:
            opened.close()
            raise
        return opened


def send(pin: Pin, method: str, headers: Mapping[str, str], body: Any, read_timeout_s: float) -> Exchange:
    """Send a request and receive the head of its answer; no read waits longer than `read_timeout_s`.

    Raises TimeoutError and ConnectionError, in words that name no host.
    """
    with _mapped("its server did not answer in time", "its server cannot be reached"):
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, "", body or None  # b"" would be sent in no chunks
        request.prepare_headers(headers)
        if "Content-Length" not in request.headers and "Transfer-Encoding" not in request.headers:
            request.prepare_content_length(request.body)
        adapter = _Adapter(pin)
        try:
            response = adapter.send(request, stream=True, timeout=(seconds_left(pin.deadline), read_timeout_s))
        except BaseException:
            adapter.close()
            raise
        return Exchange(adapter, response.raw)


class _Connection(urllib3.connection.HTTPConnection):
    """A connection to the host's name at the pinned address."""

    def __init__(self, *args: Any, pin: Pin, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pin = pin

    def _new_conn(self) -> socket.socket:
        return self._pin.connect()

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        """Request the URL's target, to the byte: urllib3 would quote a signed link anew."""
        super().putrequest(method, self._pin.destination.target, skip_host, skip_accept_encoding)


class _TlsConnection(_Connection, urllib3.connection.HTTPSConnection):
    """The same over TLS. The certificate is checked against the name."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Sends to one destination; keeps nothing afterwards."""

    def __init__(self, pin: Pin) -> None:
        super().__init__()
        destination = pin.destination
        self._pool: urllib3.HTTPConnectionPool = (
            _Pool(destination.host, destination.port, pin=pin)
            if pin.tls is None
            else _TlsPool(destination.host, destination.port, pin=pin, ssl_context=pin.tls)
        )

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> urllib3.HTTPConnectionPool:
        """Return the one pool there is, whatever the request names."""
        return self._pool

    def cert_verify(self, *args: Any, **options: Any) -> None:
        """Leave the pool's own TLS context alone."""

    def request_url(self, *args: Any, **options: Any) -> str:
        """Return a stand-in: urllib3 would put the true one into its log lines and its errors."""
        return "/"

    def close(self) -> None:
        """End the connection, also one that the server would have kept open."""
        super().close()
        self._pool.close()


@contextlib.contextmanager
def _mapped(late: str, failed: str) -> Iterator[None]:
    """Turn third-party exceptions into ours; `late` and `failed` are the words for them."""
    try:
        yield
    except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, UnicodeError, ValueError) as error:
        causes = [*_causes(error)]
        if any(isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)) for cause in causes):
            raise TimeoutError(late) from None
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            raise ConnectionError("its server's certificate is not valid") from None
        if any(isinstance(cause, urllib3.exceptions.IncompleteRead) for cause in causes):
            raise BrokenOff from None
        raise ConnectionError(failed) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
