"""F28: requests that are slow, endless, or never whole: each is ended, told why where it can be, and costs little."""

import asyncio
import http.client
import json
import socket
import threading
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from tests.faults.attacks import ATTACKS, all_at_once, attack, percentile
from tests.faults.links import HURRIED, POST, ExitLinks, Waiting, refusal, said, until
from tests.faults.links import serve as serve
from worker.transport.web import incoming as bodies
from worker.transport.web.connections import ConnectionLimits, Connections
from worker.transport.web.http_connection import UNASKED, Flow
from worker.transport.web.layers import Turnstile

ANNA, BEN = "anna's own secret key", "ben's own secret key"


OVER_HTTP = {name: kind for name, kind in ATTACKS.items() if not kind.on_socket}


def test_every_attack_is_ended(serve, figures):
    """The real attacks, with three connections each; nothing is left of them in the books."""
    with serve() as served:
        for name, kind in OVER_HTTP.items():
            quick = replace(kind, connections=3, pause_s=min(kind.pause_s, 0.05), first=kind.first[:200_000])
            outcome = attack(served.port, quick, gives_up_s=30)
            figures("F28", f"share ended of {name}", outcome.closed / quick.connections, "", at_least=1)
        assert served.http.get("/ping").status_code in (200, 204)
        books = served.config.http.books
        served.http.close()
        for _ in range(500):
            if not len(books):
                break
            time.sleep(0.02)
        assert (len(books), books.head_bytes, books.lingering) == (0, 0, 0)
        assert served.context.builder.built == 0


@pytest.mark.parametrize(
    ("parts", "status", "code", "names"),
    [
        ([b"GET /ping HTTP/1.1\r\nX: "], 408, "request_timeout", "0.4 seconds"),
        ([POST + b"Content-Length: 100\r\n\r\n{"], 408, "request_timeout", "100 bytes a second"),
        ([b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n"], 414, "address_too_long", "8000"),
        ([b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n"], 431, "headers_too_large", "100"),
        ([b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n"], 431, "headers_too_large", "32768"),
        ([b"GET / HTTP/1.1\r\nX: " + b"y" * 60_000], 431, "headers_too_large", "32768"),
        ([b"hello\r\n\r\n"], 400, "invalid_request", "HTTP"),
        ([b"GET /ws HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"], 400, "invalid_request", "WebSocket"),
        ([b"POST /v2/x/run HTTP/1.1\r\nContent-Length: 9000000000\r\n\r\n{"], 415, None, "JSON"),
    ],
)
def test_who_is_ended_is_told_the_limit(serve, parts, status, code, names):
    with serve() as served:
        answer = said(served, *parts)
        found, body = refusal(answer)
    assert (found, body["code"]) == (status, code or body["code"])
    assert body["retryable"] is (status == 408), "only who was slow may send the same again"
    assert names in body["error"]
    assert f"x-request-id: {body['request_id']}".encode() in answer.lower()
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_has_an_answer_gets_no_second_one(serve):
    with serve() as served:
        answer = said(served, b"POST /run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"5;" + b"x" * 60_000)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_slow_upload_of_an_honest_caller_passes(serve, clock):
    body = json.dumps({"prompt": "x" * 200}).encode()
    limits = ConnectionLimits(patience_s=60, body_bytes_per_s=1)
    with serve(limits) as served, socket.create_connection(("127.0.0.1", served.port), timeout=60) as link:
        link.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        started = clock()
        for start in range(0, len(body), 20):
            link.sendall(body[start : start + 20])
            until(lambda sent=start + 20: serve.books[0].bytes >= min(sent, len(body) - 1) or sent >= len(body))
            clock.forward(15)
        assert clock() - started > limits.patience_s * 1.5, "longer than it may stand still"
        assert link.recv(65_536).startswith(b"HTTP/1.1 200")


def test_who_waits_for_leave_to_send_a_body_is_judged_first(serve):
    """Key and Content-Length are looked at before a byte of a body is asked for."""
    expects = POST + b"Expect: 100-continue\r\n"
    with serve(api_keys=ANNA, max_body_mb=1) as served:
        answer = said(served, expects + b"Content-Length: 500000\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401")
        key = b"Authorization: Bearer %s\r\n" % ANNA.encode()
        assert said(served, expects + key + b"Content-Length: 1000001\r\n\r\n").startswith(b"HTTP/1.1 413")
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
            link.sendall(expects + key + b"Content-Length: 15\r\n\r\n")
            assert link.recv(4_096).startswith(b"HTTP/1.1 100")
            link.sendall(b'{"prompt": "x"}')
            assert link.recv(4_096).startswith(b"HTTP/1.1 200")


def test_a_body_goes_on_in_a_file_once_all_have_taken_their_part_of_the_memory(serve, monkeypatch, figures):
    monkeypatch.setattr(bodies, "MAX_MEMORY_BYTES", 300_000)
    text = json.dumps({"prompt": "x", "filler": "y" * 400_000}).encode()
    with serve(ConnectionLimits(patience_s=600)) as served, ExitLinks(served) as links:
        books = serve.books[0]
        for _ in range(5):
            links.open(POST + b"Content-Length: %d\r\n\r\n" % len(text) + text[:200_000])
        until(lambda: books.bytes == 1_000_000)
        for _ in range(4):  # many smaller ones would have as much
            links.open(POST + b"Content-Length: %d\r\n\r\n" % len(text) + text[:60_000])
        until(lambda: books.bytes == 1_240_000)
        most = 300_000 + 9 * bodies.LEAST_SPILT
        figures(
            "F28", "bytes in memory of 9 half bodies of 60 to 200 KB, of 300 KB", books.in_memory, "B", at_most=most
        )
        for number, link in enumerate(links.all):
            link.sendall(text[200_000:] if number < 5 else text[60_000:])
            assert link.recv(65_536).startswith(b"HTTP/1.1 400")
        until(lambda: books.bytes == books.in_memory == 0)
        answer = served.http.post("/run", content=text, headers={"Content-Type": "application/json"})
        assert answer.json()["field"] == "filler", "it was read whole"


async def _never(turnstile):
    await asyncio.Event().wait()


def test_of_what_is_not_let_in_yet_only_the_beginning_is_read(serve, monkeypatch, figures):
    """Bodies that nobody asks for, first ones and those behind another request, stay in the sockets."""
    monkeypatch.setattr(Turnstile, "_quiet", _never)
    head = POST + b"Content-Length: 100000000\r\n\r\n"
    with serve(ConnectionLimits()) as served, ExitLinks(served) as links:
        for sent in (head, b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" + head) * 10:
            links.open(sent)
            links.all[-1].setblocking(False)
            links.all[-1].send(b" " * 300_000)
        books = served.config.http.books
        until(lambda: len(books) == 20 and all(one.flow.read_paused for one in books))
        held = [len(one.cycle.body) for one in books]
    figures("F28", "bytes read of a body that waits to be let in", max(held), "B", at_most=UNASKED)


def test_only_the_time_that_the_server_takes_is_given_back():
    """A body that comes a byte at a time pauses the reading at each; a check just then gives no new patience."""
    clock = SimpleNamespace(now=0.0, time=lambda: clock.now)
    flow = Flow(SimpleNamespace(pause_reading=lambda: None, resume_reading=lambda: None), clock)
    for _ in range(10):
        clock.now += 0.99
        flow.pause_reading()
        clock.now += 0.01
        assert flow.paused() == pytest.approx(0.01)
        flow.resume_reading()
    clock.now += 5
    assert flow.paused() == 0
    flow.pause_reading()
    for _ in range(2):
        clock.now += 3
        assert flow.paused() == 3
    clock.now += 2
    flow.resume_reading()
    clock.now += 2
    assert flow.paused() == 2


def test_who_hangs_up_amid_a_body_leaves_no_traceback(serve, caplog):
    form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000\r\n\r\n--x\r\n"
    with serve(ConnectionLimits()) as served:
        for sent in (
            POST + b"Content-Length: 9000\r\n\r\n{",
            b"POST /edit HTTP/1.1\r\nHost: localhost\r\n" + form,
            b"POST /diffusers/generate/tiny HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9000\r\n\r\n\x89PNG",
        ):
            with ExitLinks(served) as links:
                links.open(sent)
                until(lambda: serve.books[0].bytes)
            until(lambda: not len(served.config.http.books))
            until(lambda: serve.books[0].bytes == 0)
            assert served.http.get("/ping").status_code in (200, 204)  # a turn later
            served.http.close()
            served.http = httpx.Client(base_url=served.origin, timeout=60)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_what_one_caller_has_under_way_is_bounded_and_no_others(serve):
    with (
        serve(ConnectionLimits(), max_body_mb=1, max_incoming_mb=2, api_keys=f"{ANNA},{BEN}") as served,
        ExitLinks(served) as links,
    ):
        books = serve.books[0]
        anna, ben = (b"Authorization: Bearer %s\r\n" % key.encode() for key in (ANNA, BEN))
        links.open(POST + anna + b"Content-Length: 900000\r\n\r\n" + b" " * 600_000)
        until(lambda: books.bytes == 600_000)
        status, body = refusal(said(served, POST + anna + b"Connection: close\r\nContent-Length: 500000\r\n\r\n"))
        assert (status, body["code"], body["details"]["retry_after_s"]) == (429, "overloaded", 5)
        assert "MAX_INCOMING_MB" in body["error"]
        answer = said(served, POST + ben + b'Connection: close\r\nContent-Length: 15\r\n\r\n{"prompt": "x"}')
        assert answer.startswith(b"HTTP/1.1 200")


def test_those_that_only_wait_make_room_and_health_is_answered(serve):
    with serve(ConnectionLimits(connections=6, connections_per_address=6)) as served, ExitLinks(served) as links:
        for _ in range(20):
            links.open(b"GET /")
        until(lambda: len(served.config.http.books) <= 6)
        assert served.http.get("/ping").status_code in (200, 204)
        until(lambda: len(links.ended()) >= 14)
        assert links.ended() == links.all[: len(links.ended())], "the oldest went first"


def test_one_that_has_asked_for_something_stays_and_others_are_told_when_to_come(serve):
    limits = ConnectionLimits(connections=2, connections_per_address=2)
    with serve(limits) as served:
        served.context.engine.gate.clear()
        answers = []
        callers = [threading.Thread(target=lambda: answers.append(ask(served))) for _ in range(2)]
        for caller in callers:
            caller.start()
        until(lambda: served.context.worker.operations.generation.admission.running == 2)
        status, body = refusal(said(served, b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert (status, body["code"]) == (429, "overloaded")
        assert "MAX_CONNECTIONS" in body["error"]
        served.context.engine.gate.set()
        for caller in callers:
            caller.join(30)
        assert answers == [200, 200]


def ask(served):
    link = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    with closing(link):
        link.request("POST", "/run", '{"prompt": "x"}', {"Content-Type": "application/json"})
        return link.getresponse().status


def test_an_answer_that_nobody_takes_does_not_stay(serve):
    with serve() as served, socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        link.connect(("127.0.0.1", served.port))
        for _ in range(14):  # 1.5 MB each: more than the system's own buffers hold
            link.sendall(b"GET /ui/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: not len(served.config.http.books))


def test_kept_alive_and_pipelined_requests_are_answered_in_order(serve):
    with serve(replace(HURRIED, keep_alive_s=0.5)) as served:
        answer = said(served, b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\nGET /ready HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [b"404", b"200"] * 2 or statuses == [b"404", b"503"] * 2


async def test_the_books_of_connections():
    books = Connections(ConnectionLimits(connections=5, connections_per_address=3, unfinished_heads_bytes=1_000))
    first = [Waiting(books, "192.0.2.1") for _ in range(3)]
    assert all(one.let_in for one in first)
    books.work(first[0])
    fourth = Waiting(books, "192.0.2.1")
    assert fourth.let_in
    assert [one.ended for one in first] == [False, True, False], "the oldest of those that wait"
    others = [Waiting(books, f"2001:db8::{index}") for index in range(3)]
    assert [one.let_in for one in others] == [True] * 3
    assert first[2].ended, "from the address with the longest queue, when all places are taken"
    assert len(books) == 5
    elsewhere = Waiting(books, "2001:db8::ffff")
    assert elsewhere.let_in
    assert others[0].ended, "a /64 is one address"
    for one in (fourth, others[1], others[2], elsewhere):
        books.work(one)
    assert not Waiting(books, "198.51.100.1").let_in, "nobody only waits"
    books.wait(others[2], 600)
    books.wait(elsewhere, 600)
    assert (others[2].ended, books.head_bytes) == (True, 600)
    for one in (first[0], fourth, others[1], elsewhere):
        books.leave(one)
        books.leave(one)
    assert (len(books), books.head_bytes, books._waiting, books._counts) == (0, 0, {}, {})


@pytest.mark.slow
def test_all_attacks_at_once_on_a_server_as_an_operator_starts_it(tmp_path, figures):
    """Some 1,500 connections in every way at once; figures of the whole process."""
    outcomes, grown_mb, pings = all_at_once(tmp_path, OVER_HTTP)
    asked = sum(kind.connections for kind in OVER_HTTP.values())
    figures("F28", "connections ended", sum(found.closed for found in outcomes), "", at_least=asked)
    longest = max(found.seconds for found in outcomes)
    figures("F28", "the last of them after", longest, "s", at_most=20, momentary=True)
    figures("F28", "memory of all attacks over HTTP at once", grown_mb, "MB", at_most=50, momentary=True)
    figures("F28", "/ping meanwhile, p99", percentile(pings, 0.99) * 1e3, "ms", at_most=50, momentary=True)
