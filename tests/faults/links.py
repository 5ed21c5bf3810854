"""A server with limits of tenths of a second, and connections that stay open to it."""

import json
import select
import socket
import time
from contextlib import contextmanager, suppress

import pytest

from tests.fakes.web_worker import WebWorker
from worker.app import server
from worker.transport.web import connections
from worker.transport.web.connections import ConnectionLimits
from worker.transport.web.incoming import Incoming

HURRIED = ConnectionLimits(
    head_s=0.4, patience_s=0.6, body_bytes_per_s=100, linger_s=0.4, unread_s=0.6, keep_alive_s=30.0
)
POST = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A server with other limits, of tenths of a second where nothing else is said; `books` are of its bodies."""
    books = []

    class Kept(Incoming):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            books.append(self)

    monkeypatch.setattr(connections, "_SWEEP_S", 0.05)
    monkeypatch.setattr(server, "Incoming", Kept)

    @contextmanager
    def served(limits=HURRIED, **settings):
        monkeypatch.setattr(server, "connection_limits", lambda settings: limits)
        with WebWorker(tmp_path, **settings) as worker:
            yield worker

    served.books = books
    return served


def said(served, *parts, pause_s=0.0):
    """All that the server says to this until it ends the connection."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
        for part in parts:
            link.sendall(part)
            time.sleep(pause_s)
        answer = b""
        with suppress(ConnectionResetError):
            while more := link.recv(65_536):
                answer += more
    return answer


def refusal(answer):
    """The status and the body of the last answer."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body)


class Waiting:
    def __init__(self, books, host):
        self.ended, self.books = False, books
        self.let_in = books.enter(self, host)

    def make_room(self):
        self.ended = True

    def check(self, now):
        pass


class ExitLinks:
    """Connections that stay open until the test ends."""

    def __init__(self, served):
        self.port, self.all = served.port, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for link in self.all:
            link.close()

    def open(self, sent):
        self.all.append(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        self.all[-1].sendall(sent)

    def ended(self):
        return [link for link in self.all if select.select([link], [], [], 0)[0]]


def until(true):
    for _ in range(1_000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")
