"""A raw socket server for what no well-behaved web server would send, and a name service that lies."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pytest

Answer = Callable[[socket.socket, str], None]
REAL_LOOKUP = socket.getaddrinfo


class RawServer:
    """Listens on 127.0.0.1, hands each connection and its request line to `answer`, and keeps the request heads."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self._answer, self._context = answer, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.heads: list[str] = []
        self.connections = 0
        self.answered = 0
        """Answers that were sent to their end."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def url(self, path: str = "/x.png", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            head = connection.recv(65_536).decode("latin-1")
            self.heads.append(head)
            self._answer(connection, head.split(" ")[1] if " " in head else "")
            self.answered += 1
        except OSError:
            pass
        finally:
            connection.close()


def body(content: bytes, *headers: str, length: int | None = None) -> Answer:
    """An answer with this content; `length` is what it says of itself, -1 for nothing."""
    size = len(content) if length is None else length
    lines = ["HTTP/1.1 200 OK", *headers, *([f"Content-Length: {size}"] if size >= 0 else [])]
    return lambda connection, path: connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)


def redirect(location: str, status: int = 302) -> Answer:
    """An answer that sends the client elsewhere."""
    return lambda connection, path: connection.sendall(
        f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    )


def trickle(start: bytes, drop: bytes = b"x", pause: float = 0.05) -> Answer:
    """An answer that never ends: `start`, then `drop` again and again."""

    def answer(connection: socket.socket, path: str) -> None:
        connection.sendall(start)
        for _ in range(2_000):
            connection.sendall(drop)
            time.sleep(pause)

    return answer


def silence(start: bytes = b"") -> Answer:
    """An answer that stops after `start`, and keeps the connection until the client goes."""

    def answer(connection: socket.socket, path: str) -> None:
        connection.sendall(start)
        while connection.recv(65_536):
            pass
        raise BrokenPipeError

    return answer


def names(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[str]]) -> list[str]:
    """Resolve the names of `table`, each to its addresses; returns the list of names that were asked for."""
    asked: list[str] = []

    def lookup(host, port, *args, **kwargs):
        if host not in table:
            return REAL_LOOKUP(host, port, *args, **kwargs)
        asked.append(host)
        return [answer for address in table[host] for answer in REAL_LOOKUP(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked
