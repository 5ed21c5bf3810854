"""One WebSocket's connection: uvicorn's, with an end to unfinished frames and to answers that nobody reads."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN

from worker.core.errors import Overloaded
from worker.transport.web.connections import Connections, network_of
from worker.transport.web.incoming import Account, Incoming

# Of one message, and the bytes for each of which there may be one more: an empty fragment is no size.
MAX_FRAGMENTS, MIN_FRAGMENT_BYTES = 64, 1_024
MAX_PINGS = 64  # within a second
_PIECE = 4_096
_READ = 16_384
TOO_LARGE, TRY_AGAIN, POLICY = 1009, 1013, 1008


class SocketConnection(WebSocketsSansIOProtocol):
    """One WebSocket, from its opening request on."""

    books: Connections
    """The books of connections and of what they hold, given by `socket_protocol`."""
    incoming: Incoming

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = self.books.limits
        self._deadline: float | None = None
        self._unsent = 0
        self._unsent_since = 0.0
        self._is_unread = False
        self._pending = bytearray()
        self._unfinished = 0
        self._pings = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Go on with a connection that has asked for a WebSocket."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        self.books.take_over(self, host)
        self._account = Account(self.incoming, network_of(host))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.books.leave(self)
        self._account.hold(0)
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        """Begin; the door says later whose this is."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"]["account"] = self._account

    @property
    def takes(self) -> int:
        """The bytes that are read at once: what may wait behind a message."""
        return _READ

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._pending += data
        self._go_on()

    async def receive(self) -> Any:
        """Return the next message for the door, and take what came behind it."""
        message = await super().receive()
        self._go_on()
        if self._is_unread and not self.transport.is_closing():
            self.transport.pause_reading()
        return message

    def _go_on(self) -> None:
        """Take a little at a time, until a message waits for its door: a read may hold 40,000 tiny ones."""
        taken = 0
        while self._pending and not self.read_paused and not self.transport.is_closing():
            piece = bytes(self._pending[:_PIECE])
            del self._pending[:_PIECE]
            taken += len(piece)
            super().data_received(piece)
            self._hold()
        if self.transport.is_closing():
            self._pending.clear()
        if not self._unfinished and not self.frames:
            self._deadline = None
        else:
            now, patience = self.loop.time(), self._limits.patience_s
            earned = max(self._deadline or 0.0, now) + taken / self._limits.body_bytes_per_s
            self._deadline = now + patience if self._deadline is None else min(now + patience, earned)

    def _hold(self) -> None:
        """Hold what is unfinished, or end if that is too much."""
        self._unfinished = len(self.conn.reader.buffer) + sum(map(len, self.frames))
        try:
            self._account.hold(self._unfinished)
        except Overloaded as error:
            self._end(TRY_AGAIN, error.message)
        if len(self.frames) > MAX_FRAGMENTS + self._unfinished // MIN_FRAGMENT_BYTES:
            self._end(POLICY, f"A message has {MAX_FRAGMENTS} fragments, or larger ones than these.")

    def handle_ping(self) -> None:
        """Answer a ping; a flood of them ends the connection."""
        self._pings += 1
        if self._pings > MAX_PINGS:
            self._end(POLICY, f"More than {MAX_PINGS} pings came within a second.")
        elif not self.close_sent:
            super().handle_ping()

    async def send(self, message: Any) -> None:
        """Send what the door says. After a refusal in words nothing is missing any more."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """Read nothing more while the other side does not: each ping would be answered into memory."""
        super().pause_writing()
        self._is_unread = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on, unless a message waits for its door."""
        super().resume_writing()
        self._is_unread = False
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def make_room(self) -> None:
        """Nothing: a WebSocket has asked for something."""

    def check(self, now: float) -> None:
        """End, if the other side keeps this waiting."""
        self._pings = 0
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or not self._unsent:
            self._unsent_since = now
        elif now - self._unsent_since > self._limits.unread_s:
            self.transport.abort()
        self._unsent = unsent
        if self._deadline is not None and now > self._deadline and not self.read_paused:
            self._end(POLICY, f"A message stood still for {self._limits.patience_s:g} seconds; send it again, faster.")

    def _end(self, code: int, reason: str) -> None:
        if self.conn.state is not OPEN or self.close_sent:
            self.transport.abort()  # there is nobody yet, or no longer, to say it to
            return
        self.conn.fail(code, reason[:120])
        self.handle_parser_exception()


def socket_protocol(connections: Connections, held: Incoming) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class for the WebSockets of a server with these books."""

    class Bound(SocketConnection):
        books = connections
        incoming = held

    return Bound
