"""The client of the operator's own other servers: connections are kept, and answers are read as they arrive.

It opens the one origin that it was made for, whatever that is, and follows no redirect. What failed is one of two
things: the request cannot have arrived (NotReached), or nobody knows (NoAnswer).
"""

import asyncio
import errno
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

import aiohttp

from worker.net.guard import USER_AGENT

CONNECT_S = 5.0
MAX_BYTES = 256 * 2**20  # of one answer
_KEPT_S = 60.0  # less than the time after which a worker closes an idle connection by itself
_BUFFER = 2**20  # of what has come and is not read yet
_NOTHING: Mapping[str, str] = MappingProxyType({})


class NotReached(ConnectionError):
    """The request was not sent. `refused`: the host is there, and no process listens at this port."""

    refused = False


class NoAnswer(ConnectionError):
    """The request was sent, all or part of it, and no whole answer came."""


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """An answer of any status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """The seconds of its Retry-After; None without one, or with a date."""
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isdecimal() and len(text) < 7 else None


class Peer:
    """One origin, and the headers of all requests to it. For one event loop."""

    def __init__(self, url: str, headers: Mapping[str, str] = _NOTHING) -> None:
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        self._opened: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] = _NOTHING,
        timeout_s: float = 30.0,
    ) -> PeerAnswer:
        """Send a request, JSON if it has a body, and return the whole answer. Raises NotReached, NoAnswer."""
        async with self._stream(method, path, body, headers, timeout_s) as response:
            parts, size = [], 0
            try:
                async with asyncio.timeout(timeout_s):
                    async for part in response.content.iter_any():
                        parts.append(part)
                        size += len(part)
                        if size > MAX_BYTES:
                            raise NoAnswer(f"the answer is over {MAX_BYTES} bytes")
            except (TimeoutError, aiohttp.ClientError) as error:
                raise NoAnswer(f"the answer broke off ({type(error).__name__})") from error
            return PeerAnswer(response.status, _lower(response.headers), b"".join(parts))

    @asynccontextmanager
    async def events(
        self, path: str, *, headers: Mapping[str, str] = _NOTHING, silence_s: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[tuple[bytes, bytes]]]]:
        """Open a stream of server-sent events: its status, and of each event the lines before its data, and the data.

        After `silence_s` seconds without a byte the stream counts as broken. Its iterator raises NoAnswer.
        """
        sent = {**headers, "Accept": "text/event-stream"}
        async with (
            self._stream("GET", path, None, sent, silence_s) as response,
            aclosing(_blocks(response, silence_s)) as blocks,
        ):
            yield response.status, blocks

    async def close(self) -> None:
        """Close all connections."""
        if self._opened is not None:
            await self._opened.close()

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = {**headers, **({"Content-Type": "application/json"} if body is not None else {})}
        connecting = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_S, timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._session.request(
                    method, self._url + path, data=body, headers=sent, timeout=connecting, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            failure = NotReached(f"it cannot be reached ({type(error).__name__})")
            failure.refused = _is_refusal(error)
            raise failure from error
        except (TimeoutError, aiohttp.ClientError) as error:
            raise NoAnswer(f"it does not answer ({type(error).__name__})") from error
        try:
            yield response
        finally:
            response.release()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            tls: ssl.SSLContext | bool = ssl.create_default_context() if self._url.startswith("https:") else True
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S, ssl=tls),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_BUFFER,
            )
        return self._opened


async def _blocks(response: aiohttp.ClientResponse, silence_s: float) -> AsyncGenerator[tuple[bytes, bytes]]:
    """Yield what stands between two empty lines, as soon as it is whole; an answer may be megabytes long."""
    parts: list[bytes] = []
    incoming = response.content.iter_any()
    try:
        while True:
            async with asyncio.timeout(silence_s):
                part = await anext(incoming, None)
            if part is None:
                return
            if parts and parts[-1][-1:] == b"\n" == part[:1]:  # the end of an event lies on the border of two parts
                part = parts.pop() + part
            while (end := _empty_line(part)) >= 0:
                yield _cut([*parts, part[:end]])
                part, parts = part[end + 2 :], []
            if part:
                parts.append(part)
    except (TimeoutError, aiohttp.ClientError) as error:
        raise NoAnswer(f"its events broke off ({type(error).__name__})") from error


def _empty_line(part: bytes) -> int:
    """Return where an empty line begins, -1 without one. A search for one byte is many times as fast as for two."""
    at = part.find(b"\n")
    while at >= 0 and part[at + 1 : at + 2] != b"\n":
        at = part.find(b"\n", at + 1)
    return at


def _cut(parts: list[bytes]) -> tuple[bytes, bytes]:
    """Return an event's lines before its data, and its data, which is megabytes and on one line: copied once."""
    head, mark, data = parts[0].partition(b"data: ")
    if not mark:  # it lies on the border of two parts, if anywhere
        head, _, data = b"".join(parts).partition(b"data: ")
        return head, data
    return head, b"".join((data, *parts[1:]))


def _is_refusal(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionRefusedError) or getattr(error, "errno", None) == errno.ECONNREFUSED:
            return True
        if isinstance(error, BaseExceptionGroup):  # of several addresses
            return all(map(_is_refusal, error.exceptions))
        error = error.__cause__ or error.__context__
    return False


def _lower(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items()}
