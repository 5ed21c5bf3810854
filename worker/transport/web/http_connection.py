"""One HTTP connection: uvicorn's, with an end to everything that it would read, keep or wait for without one.

httptools keeps a head until it is whole, however large it becomes; uvicorn times nothing but an idle connection that is
silent, and reads the rest of a body that nobody wants. h11 would bound a head's bytes and nothing else, and takes
0.15 ms of CPU for a small request where httptools takes 0.05; the limits here take 0.02.
"""

import asyncio
from collections import deque
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker.core.errors import Overloaded
from worker.service.usage import request_id
from worker.transport.body import written
from worker.transport.web.connections import Connections
from worker.transport.web.errors import failure_of
from worker.transport.web.reader import MOST, Reader
from worker.transport.web.socket_connection import SocketConnection

_PIECE = 16_384  # what the parser is given at once: a limit is passed by no more than that
UNASKED = 4_096  # what is read at once while nobody asks for a body: all that there may be of it until then
_FAREWELL_S = 5.0  # for the other side to take what was written before the end
_LINGER_S = 1.0
_RETRY_AFTER_S = 5
_LINE = 8_000  # of a header, in front of a WebSocket: websockets' own limit is a little higher, and has no answer


class _Phase(Enum):
    """What is being received."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    REST = auto()
    """Of a body whose request is answered."""
    GONE = auto()
    """What comes behind a refusal: it is dropped."""
    LEFT = auto()
    """Another protocol's: the connection is a WebSocket now."""


class Flow(FlowControl):
    """uvicorn's, and how long it is the server that has to go on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop
        self._since = self._paused = 0.0

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self.read_paused:
            self._since = self._loop.time()
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused:
            self._paused += self._loop.time() - self._since
        super().resume_reading()

    def paused(self) -> float:
        """Return for how many seconds nothing was read since this was asked last."""
        now, paused = self._loop.time(), self._paused
        if self.read_paused:
            paused += now - self._since
        self._since, self._paused = now, 0.0
        return paused


class HttpConnection(HttpToolsProtocol):
    """One connection and the requests that come on it."""

    flow: Flow

    books: Connections
    """The books, given by `http_protocol`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = self.books.limits
        self._phase = _Phase.IDLE
        self._deadline: float | None = None
        self._refusal: Exception | None = None
        self._silent = 0  # bytes since the parser last had something to say
        self._head_bytes = self._headers = 0
        self._large_heads: deque[int] = deque()
        """Of each request under way, in their order: the bytes of its head, 0 of a small one."""
        self._unsent = 0
        self._unsent_since = 0.0

    # What the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there is no place."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.loop)
        self._deadline = self.loop.time() + self._limits.head_s
        if not self.books.enter(self, self._host):
            self._refuse(
                Overloaded(
                    "This worker has all the connections that it takes (MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS); "
                    f"come again in {_RETRY_AFTER_S} seconds.",
                    details={"retry_after_s": _RETRY_AFTER_S},
                ),
                lingers=self.books.may_linger,
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.books.leave(self)
        if self._phase is _Phase.GONE:
            self.books.lingering -= 1
        super().connection_lost(exc)

    @property
    def takes(self) -> int:
        """The bytes that are read at once. Amid a body they were asked for: see `data_received`."""
        return UNASKED if self._phase in (_Phase.IDLE, _Phase.HEAD) else MOST

    def data_received(self, data: bytes) -> None:
        """Give the parser what has come, a piece at a time. Of a body no more is read until its door asks for it.

        A thousand requests may wait to be let in, and each would have its part of a body in memory meanwhile.
        """
        self._unset_keepalive_if_required()
        for start in range(0, len(data), _PIECE):
            if self._phase in (_Phase.GONE, _Phase.LEFT) or self.transport.is_closing():
                return
            piece = data[start : start + _PIECE]
            if self._phase is _Phase.IDLE:
                self._begin_head()
            self._silent += len(piece)
            self._feed(piece)
        if self._phase is _Phase.HEAD:
            self.books.wait(self, self._head_bytes + self._silent)
        elif self._phase is _Phase.BODY and not self.transport.is_closing():
            self.flow.pause_reading()

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._refuse(HTTPException(400, "Of other protocols this server speaks WebSocket only, at /ws."))
        except httptools.HttpParserError:
            self._refuse(self._refusal or HTTPException(400, "This is no HTTP request; check method, headers, length."))
        else:
            if self._silent > self._limits.header_bytes:
                self._refuse(self._too_large())

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        if self._phase is not _Phase.HEAD:
            self._begin_head()
        self._headers = self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        super().on_url(url)
        self._silent = 0
        self._head_bytes = len(self.url)
        if self._head_bytes > self._limits.url_bytes:
            self._stop(HTTPException(414, f"The address is longer than {self._limits.url_bytes} bytes; shorten it."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer behind a body."""
        super().on_header(name, value)
        self._silent = 0
        self._headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._headers > self._limits.headers or self._head_bytes > self._limits.header_bytes:
            self._stop(self._too_large())

    def on_headers_complete(self) -> None:
        """Begin a body, and to answer."""
        if len(self.pipeline) >= self._limits.pipelined:
            self._stop(HTTPException(400, "More requests were sent at once than are taken before the first answer."))
        self._keep_head()
        self._phase = _Phase.BODY
        self._silent = 0
        self._deadline = self.loop.time() + self._limits.patience_s
        self.books.work(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; for each of its bytes some time is given back."""
        self._silent = 0
        if self._phase is _Phase.BODY and self._deadline is not None:
            now = self.loop.time()
            earned = max(self._deadline, now) + len(body) / self._limits.body_bytes_per_s
            self._deadline = min(now + self._limits.patience_s, earned)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        self._phase, self._deadline, self._silent = _Phase.IDLE, None, 0
        if not self.parser.should_upgrade() and self.cycle.response_complete:
            self._rest()

    # What uvicorn's own parts call

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._large_heads:
            self._large_heads.popleft()
        self.books.keep(self, sum(self._large_heads))
        if self.transport.is_closing():
            return
        if not is_last:
            if self._phase is _Phase.BODY:
                self.flow.pause_reading()  # the next request's: it was not asked for yet
        elif self._phase is _Phase.BODY:
            self._phase, self._deadline = _Phase.REST, self.loop.time() + self._limits.linger_s
        elif self._phase is _Phase.IDLE:
            self._rest()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the protocol of WebSockets."""
        if any(len(name) + len(value) > _LINE for name, value in self.headers):
            self._refuse(HTTPException(431, f"A header is longer than {_LINE} bytes; send less."))
            return
        kept = sum(self._large_heads)
        self.books.leave(self)
        reader = self.transport.get_protocol()
        try:
            super().handle_websocket_upgrade()
            successor = self.transport.get_protocol()
            if isinstance(reader, Reader) and isinstance(successor, SocketConnection):
                reader.connection = successor
                self.books.keep(successor, kept)
                self.transport.set_protocol(reader)
            self._phase = _Phase.LEFT
        except UnicodeError:
            self._refuse(HTTPException(400, "The address or a header has characters outside of ASCII; encode them."))

    # What the books call

    def make_room(self) -> None:
        """End, for another connection: nothing is answered, since nothing was asked."""
        self.transport.close()

    def check(self, now: float) -> None:
        """End, if the other side keeps this waiting."""
        self._check_unsent(now, _FAREWELL_S if self.transport.is_closing() else self._limits.unread_s)
        paused = self.flow.paused()
        if self.transport.is_closing() or self._deadline is None:
            return
        self._deadline += paused
        if now < self._deadline:
            return
        if self.cycle is not None and self.cycle.waiting_for_100_continue:
            self._deadline = now + self._limits.patience_s  # it is the server that has to go on
        elif self._phase is _Phase.BODY:
            rate, patience = self._limits.body_bytes_per_s, self._limits.patience_s
            self._refuse(
                HTTPException(
                    408,
                    f"The body stood still for {patience:g} seconds, or came slower than {rate} bytes a second; "
                    "send it again, faster.",
                )
            )
        elif self._phase is _Phase.HEAD and self._head_bytes:
            self._refuse(
                HTTPException(408, f"The head was not whole within {self._limits.head_s:g} seconds; send it again.")
            )
        else:
            self.transport.close()

    def _check_unsent(self, now: float, limit_s: float) -> None:
        """Break off if nothing was taken of what waits to be sent for so long."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or not self._unsent:
            self._unsent_since = now
        elif now - self._unsent_since > limit_s:
            self.transport.abort()
        self._unsent = unsent

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""

    def _begin_head(self) -> None:
        self._phase = _Phase.HEAD
        self._deadline = self.loop.time() + self._limits.head_s
        self._headers = self._head_bytes = self._silent = 0

    def _keep_head(self) -> None:
        """Note the head, which lies in memory until its request is answered. Small ones are bounded by connections."""
        is_behind = self.cycle is not None and not self.cycle.response_complete
        is_large = is_behind or self._head_bytes > self._limits.small_head_bytes
        self._large_heads.append(self._head_bytes if is_large else 0)
        if not self.books.keep(self, sum(self._large_heads)):
            self._large_heads.pop()
            self._stop(
                Overloaded(
                    f"Too many requests with headers of over {self._limits.small_head_bytes} bytes are under way; send "
                    f"less in the headers, or come again in {_RETRY_AFTER_S} seconds.",
                    details={"retry_after_s": _RETRY_AFTER_S},
                )
            )

    def _rest(self) -> None:
        self._deadline = self.loop.time() + self._limits.keep_alive_s
        self.books.wait(self)
        # What was asked last would lie here as long as nothing else is asked.
        self.scope, self.headers, self.cycle = None, [], None  # type: ignore[assignment]

    def _too_large(self) -> HTTPException:
        return HTTPException(
            431,
            f"The headers are more than {self._limits.headers}, or larger than {self._limits.header_bytes} bytes; "
            "send less.",
        )

    def _stop(self, refusal: Exception) -> None:
        """Have the parser stop, and refuse the request."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, error: Exception, *, lingers: bool = False) -> None:
        """Answer with an error, where nothing else is being answered, and end.

        One whose request was not read yet has to linger: with that unread, the system would drop the answer too.
        """
        if self.transport.is_closing():
            return
        cycle, phase, self._phase = self.cycle, self._phase, _Phase.IDLE
        if phase is _Phase.REST:
            self.transport.close()  # it has its answer
            return
        if cycle is not None and not cycle.response_complete:
            is_amid = cycle.response_started or bool(self.pipeline) or cycle.scope is not self.scope
            cycle.disconnected = True
            cycle.message_event.set()
            if is_amid:
                self.transport.abort()
                return
        failure, new_id = failure_of(error), request_id.accept(None)
        body = written(failure.body | {"request_id": new_id})
        headers = {
            **failure.headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-ID": new_id,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        line = f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}\r\n"
        self.transport.write(f"{line}{head}\r\n".encode("latin-1") + body)
        if not lingers:
            self.transport.close()
            return
        self._phase = _Phase.GONE
        self.books.lingering += 1
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)


def http_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class of a server with these books."""
    buffer = bytearray(MOST)

    class Bound(HttpConnection):
        books = connections

    class BoundReader(Reader):
        books = connections

        def __init__(self, **options: Any) -> None:
            super().__init__(Bound(**options), buffer)

    # uvicorn hands it to the loop, which takes this kind of protocol too.
    return cast(type[asyncio.Protocol], BoundReader)
