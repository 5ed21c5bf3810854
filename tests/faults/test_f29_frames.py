"""F29: little that is sent becomes much that is held: frames that inflate, or do not end."""

import json
import socket
import struct
import time
import zlib

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fakes.web_worker import WebWorker
from tests.faults.attacks import ATTACKS as WHOLE
from tests.faults.attacks import Attack, all_at_once, attack, percentile
from tests.waiting import connect
from worker.app import server
from worker.transport.web import connections, events
from worker.transport.web.connections import ConnectionLimits
from worker.transport.web.socket_connection import MAX_FRAGMENTS, MAX_PINGS

ANNA, BEN = "anna's own secret key", "ben's own secret key"


@pytest.fixture
def hurried(monkeypatch):
    """Limits of tenths of a second, so that a test need not wait for those of an operator."""
    limits = ConnectionLimits(head_s=0.3, patience_s=0.5, linger_s=0.3, unread_s=0.5, keep_alive_s=30.0)
    monkeypatch.setattr(connections, "_SWEEP_S", 0.05)
    monkeypatch.setattr(server, "connection_limits", lambda settings: limits)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def talk(served, key=None, **options):
    headers = {"Authorization": f"Bearer {key}"} if key else None
    return connect(
        f"ws://127.0.0.1:{served.port}/ws", max_size=None, close_timeout=0.5, additional_headers=headers, **options
    )


def frame(first, payload, length=None):
    """A frame of a client's; `length` is what it says of itself."""
    return bytes([first, 0xFF]) + struct.pack("!Q", len(payload) if length is None else length) + bytes(4) + payload


@pytest.fixture
def served(tmp_path, hurried):
    with WebWorker(tmp_path, max_message_mb=1) as worker:
        yield worker


def test_nothing_inflates(served, figures):
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(b" " * 50_000_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    with talk(served, compression="deflate") as link:
        assert link.protocol.extensions == [], "what was offered is not taken"
        link.socket.sendall(frame(0xC1, bomb[:-4]))
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(timeout=120)
    assert closed.value.rcvd.code == 1002
    figures("F29", "bytes that a frame may become, for one that it has", 1, "", at_most=1)


def test_a_message_is_no_larger_than_a_body(served):
    for sent in (frame(0x81, b"", 10**6 + 1), frame(0x01, b"x" * 600_000) + frame(0x80, b"", 600_000)):
        with talk(served) as link, pytest.raises(ConnectionClosed) as closed:
            link.socket.sendall(sent)
            link.recv(timeout=120)
        assert closed.value.rcvd.code == 1009


def test_a_message_has_an_end_to_its_fragments(served):
    with talk(served) as link, pytest.raises(ConnectionClosed) as closed:
        link.socket.sendall(frame(0x01, b"") + frame(0x00, b"") * (MAX_FRAGMENTS + 10))
        link.recv(timeout=120)
    assert closed.value.rcvd.code == 1008
    with talk(served) as link:
        link.socket.sendall(frame(0x01, b"{") + frame(0x00, b" " * 2_000) * (MAX_FRAGMENTS * 2) + frame(0x80, b""))
        assert json.loads(link.recv(timeout=120))["type"] == "failed", "larger ones may be more"


def test_pings_are_answered_and_a_flood_of_them_ends(served):
    with talk(served) as link:
        for _ in range(3):
            assert link.ping().wait(20)
        link.socket.sendall(b"\x89\x80\0\0\0\0" * (MAX_PINGS + 1))
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(timeout=120)
    assert closed.value.rcvd.code == 1008


def test_many_messages_in_one_packet_are_all_answered(served):
    with talk(served) as link:
        link.socket.sendall(frame(0x81, b"[]") * 2_000)
        assert {json.loads(link.recv(timeout=120))["type"] for _ in range(2_000)} == {"failed"}


ATTACKS = {
    "half a frame": Attack(frame(0x81, b"x" * 1_000, 500_000), connections=3, on_socket=True),
    "half a message": Attack(frame(0x01, b"x" * 1_000), connections=3, on_socket=True),
    "a byte of a frame now and then": Attack(frame(0x81, b"", 500_000), b"x", 0.1, connections=3, on_socket=True),
    "pings whose answers are not read": Attack(
        b"", (b"\x89\xfd\0\0\0\0" + b"p" * 125) * 500, connections=2, on_socket=True
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_ended(served, figures, name):
    outcome = attack(served.port, ATTACKS[name], gives_up_s=30)
    figures("F29", f"share ended of {name}", outcome.closed / ATTACKS[name].connections, "", at_least=1)
    held_by(served, 0)


def held_by(served, count):
    """Wait until the messages that are being received are of so many bytes."""
    for _ in range(1_000):
        if served.config.ws.incoming.bytes == count:
            return
        time.sleep(0.02)
    raise AssertionError(served.config.ws.incoming.bytes)


def test_all_that_one_caller_has_unfinished_is_bounded_and_no_others(tmp_path):
    with WebWorker(tmp_path, max_message_mb=1, api_keys=f"{ANNA},{BEN}") as served:
        with talk(served, ANNA) as first, talk(served, ANNA) as second, talk(served, BEN) as other:
            first.socket.sendall(frame(0x81, b"x" * 600_000, 900_000))
            held_by(served, 600_000)
            other.socket.sendall(frame(0x81, b"x" * 600_000, 900_000))
            held_by(served, 1_200_000)
            second.socket.sendall(frame(0x81, b"x" * 600_000, 900_000))
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(timeout=120)
            assert (closed.value.rcvd.code, "MAX_MESSAGE_MB" in closed.value.rcvd.reason) == (1013, True)
        held_by(served, 0)


def test_a_caller_has_so_many_sockets_and_is_told(tmp_path):
    with WebWorker(tmp_path, max_sockets_per_caller=2, api_keys=f"{ANNA},{BEN}") as served:
        with talk(served, ANNA), talk(served, ANNA):
            with pytest.raises(InvalidStatus) as refused:
                talk(served, ANNA)
            with talk(served, BEN):
                pass
        answer = refused.value.response
        assert (answer.status_code, json.loads(answer.body)["code"]) == (429, "overloaded")
        assert "MAX_SOCKETS_PER_CALLER" in json.loads(answer.body)["error"]
        for _ in range(1_000):
            try:
                with talk(served, ANNA):
                    break
            except InvalidStatus:  # the server has not heard yet that the others left
                time.sleep(0.02)
        else:
            raise AssertionError("its places were not given back")


def test_streams_of_events_are_counted_with_a_callers_sockets(tmp_path):
    with WebWorker(tmp_path, max_sockets_per_caller=2, api_keys=f"{ANNA},{BEN}") as served:
        served.context.engine.gate.clear()
        job = served.http.post("/v2/any/run", json={"input": {"prompt": "x"}}, headers=bearer(ANNA)).json()["id"]

        def follow():
            return httpx.stream("GET", f"{served.origin}/events/{job}", headers=bearer(ANNA), timeout=20)

        with follow() as first, talk(served, ANNA):
            assert first.status_code == 200
            with follow() as refused:
                assert refused.status_code == 429
                assert "MAX_SOCKETS_PER_CALLER" in refused.read().decode()
        for _ in range(1_000):
            with follow() as again:
                if again.status_code == 200:
                    break
            time.sleep(0.02)  # the server has not heard yet that the others left
        else:
            raise AssertionError("its places were not given back")
        served.context.engine.gate.set()


def test_a_silent_socket_ends_and_one_with_a_job_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "SILENCE_S", 0.3)
    with WebWorker(tmp_path) as served:
        with talk(served) as silent, pytest.raises(ConnectionClosed) as closed:
            silent.recv(timeout=120)
        assert closed.value.rcvd.code == 1000
        served.context.engine.gate.clear()
        with talk(served) as busy:
            busy.send(json.dumps({"type": "run", "input": {"prompt": "x"}}))
            time.sleep(1)
            served.context.engine.gate.set()
            while json.loads(busy.recv(timeout=120))["type"] != "result":
                pass


def test_what_comes_before_a_socket_is_opened_is_no_way_in(served):
    """A header that the WebSocket's own parser would choke on, and letters outside of ASCII, are refused in words."""
    for line, status in ((b"X: " + b"a" * 9_000, b"431"), (b"X: \xff", b"101")):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
            key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            head = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + key
            link.sendall(head + line + b"\r\n\r\n")
            assert link.recv(4_096).split()[1] == status


@pytest.mark.slow
def test_all_attacks_on_websockets_at_once(tmp_path, figures):
    """240 sockets at once; figures of the whole process."""
    kinds = {name: kind for name, kind in WHOLE.items() if kind.on_socket}
    outcomes, grown_mb, pings = all_at_once(tmp_path, kinds, MAX_SOCKETS_PER_CALLER="1000")
    asked = sum(kind.connections for kind in kinds.values())
    figures("F29", "WebSockets ended", sum(found.closed for found in outcomes), "", at_least=asked)
    figures("F29", "the last of them after", max(found.seconds for found in outcomes), "s", at_most=20, momentary=True)
    figures("F29", "memory of all attacks on WebSockets at once", grown_mb, "MB", at_most=50, momentary=True)
    figures("F29", "/ping meanwhile, p99", percentile(pings, 0.99) * 1e3, "ms", at_most=50, momentary=True)
