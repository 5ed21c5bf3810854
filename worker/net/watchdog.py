"""The watchdog that ends a connection at its deadline, whatever the server does meanwhile."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from worker.core.turn import current


class Watchdog:
    """Shuts one connection when a block exceeds its time.

    A socket's timeout bounds one wait. A server that sends a byte a second, within a handshake, a header or a chunk's
    size, passes any of them.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._shut = False

    def watch(self, connection: socket.socket) -> None:
        """Watch `connection`. Raises TimeoutError when its time is over already."""
        with self._lock:
            # A duplicate, below TLS: the original changes hands, and its last holder forgets it while it still reads.
            self._socket = connection.dup()
            if self._shut:
                raise TimeoutError("its server did not answer in time")

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Limit the block inside to `seconds`, and to the turn under way, which may also be taken back.

        Turns the errors of a connection that was shut into a TimeoutError.
        """
        stop = current().stop
        timer = threading.Timer(min(seconds, stop.remaining_s), self._abort)
        timer.daemon = True
        timer.start()
        try:
            with stop.on_cancel(self._abort):
                yield
        finally:
            timer.cancel()
            if self._shut:  # a shut socket looks like a broken one, or like the end of a body
                raise TimeoutError("its server did not answer in time") from None

    def close(self) -> None:
        """Let the connection go."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()

    def _abort(self) -> None:
        with self._lock:
            self._shut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
