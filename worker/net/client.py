"""The store's one HTTP client: guarded like every request a caller can cause, and careful with the operator's tokens.

It opens https URLs at public addresses only (media/guard.py), follows redirects itself and checks every hop. A token
goes to the origin that it belongs to and nowhere else: not to the storage host that a download is redirected to, and
not to its own origin when somebody else's link led there.
"""

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import SplitResult

from worker.net.guard import (
    MAX_REDIRECTS,
    REDIRECTS,
    USER_AGENT,
    PinnedConnection,
    RefusedUrl,
    check_url,
    connect,
    join_url,
    request_target,
    seconds_left,
)

TIMEOUT_S = 30.0
READ_BYTES = 2**20
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Response:
    """An answer whose body is read as it arrives. Header names are in lower case; `length` is what is declared."""

    def __init__(self, connection: PinnedConnection, answer: http.client.HTTPResponse, timeout_s: float) -> None:
        self.status: int = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.getheaders()}
        self.length: int | None = answer.length
        self._connection, self._answer, self._timeout_s = connection, answer, timeout_s

    def read(self, size: int = READ_BYTES) -> bytes:
        """Up to `size` bytes, as soon as any have arrived; b"" at the end.

        Never waits longer than the timeout, so that a caller can keep a deadline and a pace of its own. Raises
        TimeoutError, or ConnectionError when the body breaks off.
        """
        with _broken_off():
            block = self._read_chunked(size) if self._answer.chunked else self._answer.read1(size)
        if not block and self._answer.length:
            raise ConnectionError("its server broke off")
        return block

    def read_all(self, limit: int) -> bytes:
        """The whole body, within one timeout. Raises OSError, ValueError when it is longer than `limit` bytes."""
        deadline = time.monotonic() + self._timeout_s
        body = bytearray()
        while block := self.read():
            body += block
            if len(body) > limit:
                raise ValueError(f"the answer is over {limit} bytes")
            seconds_left(deadline)
        return bytes(body)

    def close(self) -> None:
        """End the connection; what was not read is never sent."""
        with contextlib.suppress(OSError):
            self._answer.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read_chunked(self, size: int) -> bytes:
        # Between chunks http.client reads whole lines, which can trickle past any socket's timeout.
        with _Watchdog(self._connection, self._timeout_s):
            return self._answer.read1(size)


class Web:
    """Opens URLs. `endpoints` are the operator's own choices: URL of the service -> its token, or None.

    An endpoint may speak http and have a private address, as mirrors do; `allow_private` lets every URL.
    """

    def __init__(
        self, endpoints: Mapping[str, str | None] = MappingProxyType({}), *, allow_private: bool = False
    ) -> None:
        self._tokens = {_origin(check_url(url, allow_private=True)): token for url, token in endpoints.items()}
        self._allow_private = allow_private

    def open(
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
        Raises OSError without a host or address in its message: RefusedUrl (PermissionError) for a URL that may not
        be opened, TimeoutError, else ConnectionError.
        """
        sent = {**headers, "Accept-Encoding": "identity", "User-Agent": USER_AGENT, "Connection": "close"}
        if start or end is not None:
            sent["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if etag:
                sent["If-Range"] = etag
        deadline = time.monotonic() + timeout_s
        token: str | None = None
        for hop in range(MAX_REDIRECTS + 1):
            parts = self._checked(url)
            # Only an unbroken chain of the token's own origins may have it; once left, it is not taken up again.
            own = self._tokens.get(_origin(parts))
            token = own if hop == 0 or own == token else None
            bearer = {"Authorization": f"Bearer {token}"} if token else {}
            response = self._send(parts, sent | bearer, deadline, timeout_s)
            location = response.headers.get("location")
            if response.status not in REDIRECTS or not location:
                return response
            response.close()
            url = join_url(url, location)
        raise RefusedUrl(f"it redirects more than {MAX_REDIRECTS} times")

    def _is_trusted(self, parts: SplitResult) -> bool:
        return self._allow_private or _origin(parts) in self._tokens

    def _checked(self, url: str) -> SplitResult:
        parts = check_url(url, allow_private=True)
        return parts if self._is_trusted(parts) else check_url(url, allow_private=False)

    def _send(self, parts: SplitResult, headers: Mapping[str, str], deadline: float, timeout_s: float) -> Response:
        with _unreachable(), contextlib.ExitStack() as opened:
            connection = connect(parts, allow_private=self._is_trusted(parts), deadline=deadline)
            opened.callback(connection.close)
            with _Watchdog(connection, seconds_left(deadline)):
                connection.request("GET", request_target(parts), headers=dict(headers))
                answer = connection.getresponse()
            connection.limit_reads(timeout_s)
            opened.pop_all()
            return Response(connection, answer, timeout_s)


@contextlib.contextmanager
def _unreachable() -> Iterator[None]:
    """What goes wrong before an answer, in words that name no host."""
    try:
        yield
    except RefusedUrl:
        raise
    except TimeoutError:
        raise TimeoutError("its server did not answer in time") from None
    except ssl.SSLCertVerificationError:
        raise ConnectionError("its server's certificate is not valid") from None
    except (OSError, http.client.HTTPException, UnicodeError, ValueError):
        raise ConnectionError("its server cannot be reached") from None


@contextlib.contextmanager
def _broken_off() -> Iterator[None]:
    """What goes wrong while a body is read, in words that name no host."""
    try:
        yield
    except TimeoutError:
        raise TimeoutError("its server stopped sending") from None
    except (OSError, http.client.HTTPException, ValueError):
        raise ConnectionError("its server broke off") from None


class _Watchdog:
    """Shuts a connection when the block inside takes longer, and then makes a TimeoutError of whatever that caused."""

    def __init__(self, connection: PinnedConnection, timeout_s: float) -> None:
        self._connection = connection
        self._timer = threading.Timer(timeout_s, connection.abort)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        if self._connection.aborted:  # a shut socket looks like a broken one, or like the end of a body
            raise TimeoutError("its server did not answer in time") from None


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
