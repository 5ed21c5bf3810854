"""F28: the heads of requests under way have a budget, and one that was answered is forgotten."""

import socket

from tests.faults.links import POST, ExitLinks, Waiting, refusal, said, until
from tests.faults.links import serve as serve
from worker.transport.web.connections import ConnectionLimits, Connections


def test_heads_of_requests_under_way_are_bounded_and_small_ones_pass(serve):
    """They lie in memory until the answer; who sends a small one is not kept out by those who send large ones."""
    limits = ConnectionLimits(large_heads_bytes=50_000)
    large = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"
    waiting = POST + b"Content-Length: 100\r\nX: " + b"y" * 20_000 + b"\r\n\r\n{"
    with serve(limits) as served, ExitLinks(served) as links:
        books = served.config.http.books
        for _ in range(2):
            links.open(waiting)
        until(lambda: 40_000 < books.kept_bytes <= 50_000)
        status, body = refusal(said(served, large))
        assert (status, body["code"], body["details"]["retry_after_s"]) == (429, "overloaded", 5)
        assert "4096" in body["error"]
        assert served.http.get("/ping").status_code in (200, 204)
        links.__exit__()
        until(lambda: books.kept_bytes == 0)
        assert said(served, large).startswith(b"HTTP/1.1 404")


def test_a_head_is_forgotten_once_its_request_is_answered(serve):
    head = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"
    with serve(ConnectionLimits()) as served, ExitLinks(served) as links:
        links.open(head)
        assert links.all[0].recv(65_536).startswith(b"HTTP/1.1 404")
        books = served.config.http.books
        until(lambda: books.kept_bytes == 0)
        (one,) = books
        until(lambda: (one.scope, one.headers, one.cycle) == (None, [], None))
        links.all[0].sendall(head)
        assert links.all[0].recv(65_536).startswith(b"HTTP/1.1 404")


def test_pipelined_heads_count_from_the_first_byte(serve):
    small = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    with serve(ConnectionLimits(large_heads_bytes=200)) as served:
        served.context.engine.gate.clear()
        body = b'{"prompt": "x"}'
        first = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
            link.sendall(first + small * 8)
            until(lambda: not len(served.config.http.books))
        served.context.engine.gate.set()


async def test_the_books_of_large_heads():
    books = Connections(ConnectionLimits(large_heads_bytes=1_000))
    one, other = Waiting(books, "192.0.2.1"), Waiting(books, "192.0.2.2")
    assert books.keep(one, 600)
    assert not books.keep(other, 600)
    assert books.keep(other, 400)
    assert books.keep(one, 100)
    assert books.kept_bytes == 500
    books.leave(one)
    books.leave(other)
    assert (books.kept_bytes, books._kept) == (0, {})
