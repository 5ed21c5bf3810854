"""The one HTTP client of the worker: guarded, because a caller can cause its requests, and careful with tokens.

It opens https URLs at public addresses only (guard.py), follows redirects itself and checks every hop. A token goes to
the origin that it belongs to and nowhere else: not to the storage host that a download is redirected to, and not to its
own origin when somebody else's link led there. No connection and no cookie is kept between two requests.
"""

import contextlib
import functools
import ssl
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult

from worker.core.turn import current
from worker.net.guard import (
    MAX_REDIRECTS,
    REDIRECTS,
    USER_AGENT,
    Destination,
    RefusedUrl,
    check_url,
    join_url,
    resolve,
    seconds_left,
)
from worker.net.watchdog import Watchdog

if TYPE_CHECKING:
    from worker.net.adapter import Exchange

TIMEOUT_S = 30.0
READ_BYTES = 2**20
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})


class Oversize(ValueError):
    """A body over its reader's limit."""


class Response:
    """An answer whose body is read as it arrives. Header names are in lower case; `length` is the declared one.

    Every read raises TimeoutError, BrokenOff or another ConnectionError, and RefusedUrl for a body that is compressed
    although nobody asked for that: it could be a bomb.
    """

    def __init__(self, exchange: "Exchange", watchdog: Watchdog, timeout_s: float) -> None:
        self._exchange, self._watchdog, self._timeout_s = exchange, watchdog, timeout_s
        self.status: int = exchange.status
        self.headers: Mapping[str, str] = exchange.headers
        self.length: int | None = exchange.length

    def read(self, size: int = READ_BYTES) -> bytes:
        """Return up to `size` bytes, as soon as any have arrived; b"" at the end.

        Never waits longer than the timeout, so that a caller can keep a deadline and a pace of its own.
        """
        self._refuse_compressed()
        if not self._exchange.is_chunked and current().stop.remaining_s > self._timeout_s:
            return self._exchange.read(size)
        # Between chunks whole lines are read, which can trickle past any socket's timeout. And a turn may end first.
        with self._watchdog.limit(self._timeout_s):
            return self._exchange.read(size)

    def read_all(
        self, limit: int, deadline: float | None = None, count: Callable[[int], None] = lambda more: None
    ) -> bytes:
        """Read the whole body until `deadline`, a time of `time.monotonic`; by default within one timeout from now.

        Raises Oversize when it is longer than `limit` bytes, unread if that is declared; and what `count` raises, which
        hears of the bytes as they come.
        """
        self._refuse_compressed()
        body = bytearray()
        if self.length is not None and self.length > limit:
            raise Oversize(f"the answer is over {limit} bytes")
        with self._watchdog.limit(self._timeout_s if deadline is None else seconds_left(deadline)):
            while block := self._exchange.read(2**16):
                count(len(block))
                body += block
                if len(body) > limit:
                    raise Oversize(f"the answer is over {limit} bytes")
        return bytes(body)

    def close(self) -> None:
        """End the connection; the unread rest is never sent."""
        self._exchange.close()
        self._watchdog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _refuse_compressed(self) -> None:
        if not _COMPRESSED.isdisjoint(self.headers.get("content-encoding", "").lower().replace(" ", "").split(",")):
            raise RefusedUrl("its server sends it compressed")


class Client:
    """Opens URLs. `endpoints` are the operator's own choices: URL of the service -> its token, or None.

    An endpoint may speak http and have a private address, as mirrors do; `allow_private` lets every URL. Safe to use
    from several threads. Its methods raise OSError without a host or address in its message: RefusedUrl
    (PermissionError) for a URL that may not be opened, UnknownHost, TimeoutError, else ConnectionError.
    """

    def __init__(
        self, endpoints: Mapping[str, str | None] = MappingProxyType({}), *, allow_private: bool = False
    ) -> None:
        self._tokens = {_origin(check_url(url, allow_private=True)): token for url, token in endpoints.items()}
        self._allow_private = allow_private

    def check(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Look the host of `url` up, and raise if it may not be opened. Nothing is connected to."""
        self._resolve(self._checked(url), _deadline(timeout_s))

    def get(
        self,
        url: str,
        *,
        start: int = 0,
        end: int | None = None,
        etag: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        timeout_s: float = TIMEOUT_S,
    ) -> Response:
        """Ask for bytes `start` to `end` of `url`, `end` not included; all of it by default. Any status comes back.

        With `etag` a range counts for that version only: if the file is another by now, the answer is 200 and whole.
        `timeout_s` bounds the time until the answer's headers are here, redirects included, and each read thereafter.
        """
        request_headers = dict(headers)
        if start or end is not None:
            request_headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if etag:
                request_headers["If-Range"] = etag
        deadline = _deadline(timeout_s)
        token: str | None = None
        for hop in range(MAX_REDIRECTS + 1):
            parts = self._checked(url)
            # Only an unbroken chain of the token's own origins may have it; once left, it is not taken up again.
            origin_token = self._tokens.get(_origin(parts))
            token = origin_token if hop == 0 or origin_token == token else None
            bearer = {"Authorization": f"Bearer {token}"} if token else {}
            response = self._exchange(parts, deadline, timeout_s, "GET", request_headers | bearer)
            location = response.headers.get("location")
            if response.status not in REDIRECTS or not location:
                return response
            response.close()
            url = join_url(url, location)
        raise RefusedUrl(f"it redirects more than {MAX_REDIRECTS} times")

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Any = None, timeout_s: float = TIMEOUT_S
    ) -> Response:
        """Send `body`, bytes or an open file, and return the answer, whatever its status: no redirect is followed.

        `timeout_s` bounds the time until the answer's headers are here.
        """
        return self._exchange(self._checked(url), _deadline(timeout_s), timeout_s, method, headers, body)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """The system's certificates, read once: that takes as long as a request. `requests` would bring its own."""
        return ssl.create_default_context()

    def _is_trusted(self, parts: SplitResult) -> bool:
        return self._allow_private or _origin(parts) in self._tokens

    def _checked(self, url: str) -> SplitResult:
        parts = check_url(url, allow_private=True)
        return parts if self._is_trusted(parts) else check_url(url, allow_private=False)

    def _resolve(self, parts: SplitResult, deadline: float) -> Destination:
        return resolve(parts, allow_private=self._is_trusted(parts), deadline=deadline)

    def _exchange(
        self,
        parts: SplitResult,
        deadline: float,
        timeout_s: float,
        method: str,
        headers: Mapping[str, str],
        body: Any = None,
    ) -> Response:
        from worker.net.adapter import Pin, send  # late: a process that opens no URL need not wait for it

        request_headers = {"User-Agent": USER_AGENT, **headers, "Accept-Encoding": "identity", "Connection": "close"}
        destination = self._resolve(parts, deadline)
        tls = self._tls if destination.tls else None
        with contextlib.ExitStack() as opened:
            watchdog = Watchdog()
            opened.callback(watchdog.close)
            with watchdog.limit(seconds_left(deadline)):
                exchange = send(Pin(destination, tls, watchdog, deadline), method, request_headers, body, timeout_s)
                opened.callback(exchange.close)
            opened.pop_all()
            return Response(exchange, watchdog, timeout_s)


def _deadline(timeout_s: float) -> float:
    """Return the end of a wait of `timeout_s` on time.monotonic's clock, or that of the turn under way if sooner."""
    return time.monotonic() + min(timeout_s, current().stop.remaining_s)


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
