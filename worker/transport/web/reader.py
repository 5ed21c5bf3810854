"""What reads a connection's socket: no more at once than the connection has a use for.

For a plain protocol an event loop reads a quarter of a megabyte at once. Behind the heads of two thousand requests that
would be half a gigabyte, before the first of them is let in.
"""

import asyncio
from typing import Protocol, cast

MOST = 65_536


class Read(Protocol):
    """A connection that is read by a `Reader`."""

    @property
    def takes(self) -> int:
        """The bytes that it takes at once now: 1 to `MOST`."""
        ...

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin."""
        ...

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        ...

    def eof_received(self) -> bool | None:
        """Take note that no more will come."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        ...

    def pause_writing(self) -> None:
        """Write no more for now."""
        ...

    def resume_writing(self) -> None:
        """Write on."""
        ...


class Reader(asyncio.BufferedProtocol):
    """The transport's protocol in front of a connection, which may be followed by another."""

    def __init__(self, connection: Read, buffer: bytearray) -> None:
        """Read into `buffer`, of `MOST` bytes: one for all connections of an event loop, since each copies at once."""
        self.connection = connection
        self._buffer = memoryview(buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on."""
        self.connection.connection_made(cast(asyncio.Transport, transport))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return room for as much as the connection takes."""
        return self._buffer[: self.connection.takes]

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was read."""
        self.connection.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self.connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self.connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self.connection.resume_writing()
