"""Callers who mean harm, on raw sockets: what they send, how long it is suffered, and what it costs.

    python -m tests.faults.attacks [NAME …]

starts a server as an operator does, attacks it in each of these ways and prints the most memory it took, the seconds
until every connection was closed, and how long /ping took meanwhile.
"""

import http.client
import multiprocessing
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
_HEAD = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PIECE = 65_536
_MOST = 300_000_000  # bytes of one attack: a server without limits keeps them all


@dataclass(frozen=True)
class Attack:
    """What each connection sends first, what it goes on with, and the pause between pieces of that."""

    first: bytes
    then: bytes = b""
    pause_s: float = 0.0
    connections: int = 200
    on_socket: bool = False
    """Whether all of it comes on a WebSocket that was opened."""


ATTACKS = {
    "silent connections": Attack(b""),
    "half a request line": Attack(b"GET /ru"),
    "half a head": Attack(_HEAD + b"X-Half: "),
    "a byte of a header a second": Attack(_HEAD + b"X: ", b"a", 1.0),
    "a header a second": Attack(_HEAD, b"X-One: more\r\n", 1.0),
    "an endless header": Attack(_HEAD + b"X: ", b"a" * _PIECE, connections=20),
    "endless headers": Attack(_HEAD, b"X: y\r\n" * (_PIECE // 6), connections=20),
    "an endless URL": Attack(b"GET /", b"a" * _PIECE, connections=20),
    "endless empty lines": Attack(b"", b"\r\n" * (_PIECE // 2), connections=20),
    "requests without waiting for answers": Attack(
        b"", b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" * 2_000, connections=20
    ),
    "half a body": Attack(_HEAD + b"Content-Length: 100000000\r\n\r\n" + b" " * 1_000_000, connections=100),
    "a byte of a body a second": Attack(_HEAD + b"Content-Length: 100000000\r\n\r\n", b" ", 1.0),
    "an endless body in chunks": Attack(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * _PIECE + b"\r\n", connections=8
    ),
    "an endless extension of a chunk": Attack(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * _PIECE, connections=20
    ),
    "endless trailers": Attack(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: y\r\n" * (_PIECE // 6), connections=20
    ),
    "an endless body after the refusal": Attack(
        b"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"10000\r\n" + b" " * _PIECE + b"\r\n",
        connections=8,
    ),
    "silent WebSockets, half a frame's head": Attack(b"\x81\xff\0", on_socket=True, connections=100),
    "half a frame": Attack(
        b"\x81\xff" + (30_000_000).to_bytes(8, "big") + b"\0\0\0\0" + b" " * 1_000_000,
        on_socket=True,
        connections=100,
    ),
    "endless empty fragments": Attack(
        b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0" * (_PIECE // 6), connections=20, on_socket=True
    ),
    "pings whose answers are not read": Attack(
        b"", (b"\x89\xfd\0\0\0\0" + b"p" * 125) * 500, connections=20, on_socket=True
    ),
}


@dataclass
class Outcome:
    """What an attack came to."""

    sent: int = 0
    closed: int = 0
    seconds: float = 0.0
    """Until the last connection was closed, or the attacker gave up."""


def attack(port: int, kind: Attack, gives_up_s: float = 25.0) -> Outcome:
    """Attack the server at this port until it has closed every connection."""
    outcome, started = Outcome(), time.monotonic()
    links: dict[int, tuple[socket.socket, bytes]] = {}
    for _ in range(kind.connections):
        link = socket.create_connection(("127.0.0.1", port), timeout=10)
        if kind.on_socket:
            link.sendall(_UPGRADE)
            assert link.recv(4_096).startswith(b"HTTP/1.1 101")
        link.setblocking(False)
        links[link.fileno()] = (link, kind.first)
    pause_until = 0.0
    while links and time.monotonic() - started < gives_up_s:
        now = time.monotonic()
        goes_on = bool(kind.then) and now >= pause_until and outcome.sent < _MOST
        if goes_on and kind.pause_s:
            pause_until = now + kind.pause_s
            links = {number: (link, rest + kind.then) for number, (link, rest) in links.items()}
        elif goes_on:
            links = {number: (link, rest or kind.then) for number, (link, rest) in links.items()}
        waiting = [number for number, (_, rest) in links.items() if rest]
        for number in _found(links, select.POLLRDHUP, 0):  # of answers nothing is taken off: nobody here reads
            links.pop(number)[0].close()
            outcome.closed += 1
        for number in _found([number for number in waiting if number in links], select.POLLOUT, 0.05):
            link, rest = links[number]
            with suppress(OSError):
                count = link.send(rest)
                outcome.sent += count
                links[number] = (link, rest[count:])
    outcome.seconds = time.monotonic() - started
    for link, _ in links.values():
        link.close()
    return outcome


def _found(numbers: Iterable[int], what: int, within_s: float) -> list[int]:
    """Return those of these connections that are ready for this, or gone."""
    poll = select.poll()
    for number in numbers:
        poll.register(number, what)
    return [number for number, _ in poll.poll(within_s * 1_000)]


def _ask(port: int, out: Connection, stop: Callable[[], bool]) -> None:
    seconds = []
    while not stop():
        began = time.monotonic()
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            link.request("GET", "/ping")
            link.getresponse().read()
            seconds.append(time.monotonic() - began)
        except OSError:
            seconds.append(30.0)
        link.close()
        time.sleep(0.02)
    out.send(seconds)


@contextmanager
def asking(port: int) -> Iterator[list[float]]:
    """Ask /ping from another process for as long as this lasts; then the list has the seconds of each answer."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    ended = context.Event()
    process = context.Process(target=_ask, args=(port, there, ended.is_set), daemon=True)
    process.start()
    seconds: list[float] = []
    yield seconds
    ended.set()
    seconds += here.recv()
    process.join()


def rss_mb(pid: int, what: str = "VmRSS") -> float:
    """Return a process's memory; as VmHWM the most since it was last reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def reset_peak(pid: int) -> None:
    """Have VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def percentile(seconds: list[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


@contextmanager
def server(folder: Path, **env: str) -> Iterator[tuple[WorkerProcess, int]]:
    """Start a server without keys as an operator does; its engine is not built."""
    port = free_port()
    settings = {"STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(port), "DEVICE": "cpu"}
    settings |= {"VOLUME_DIR": str(folder / "volume"), "HOME": str(folder), "WARM_UP": "false"}
    with WorkerProcess(PROJECT / "handler.py", env=settings | env, cwd=folder) as worker:
        for _ in range(1_000):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield worker, port


def all_at_once(folder: Path, kinds: Mapping[str, Attack], **env: str) -> tuple[list[Outcome], float, list[float]]:
    """Attack a server of its own in all these ways; return what came of it, the MB it took, and pings' seconds."""
    outcomes: list[Outcome] = []
    with server(folder, **env) as (worker, port):
        with asking(port):
            time.sleep(1)  # what is imported with the first requests is not the attack's
        before = rss_mb(worker.pid)
        reset_peak(worker.pid)

        def attack_with(kind: Attack) -> None:
            outcomes.append(attack(port, kind, gives_up_s=40))

        threads = [threading.Thread(target=attack_with, args=(kind,)) for kind in kinds.values()]
        with asking(port) as seconds:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return outcomes, rss_mb(worker.pid, "VmHWM") - before, seconds


def main(names: list[str]) -> None:
    """Attack in each of the named ways, or in all."""
    print(f"{'':<40} {'closed':>9} {'after':>8} {'RSS':>10} {'/ping p50':>10} {'p99':>9} {'sent':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in ATTACKS.items():
            if names and name not in names:
                continue
            with server(Path(folder)) as (worker, port):
                with asking(port):
                    time.sleep(1)  # what is imported with the first requests is not the attack's
                before = rss_mb(worker.pid)
                reset_peak(worker.pid)
                with asking(port) as seconds:
                    outcome = attack(port, kind)
                peak = rss_mb(worker.pid, "VmHWM") - before
            print(
                f"{name:<40} {outcome.closed:>4}/{kind.connections:<4} {outcome.seconds:>6.1f} s {peak:>+7.0f} MB "
                f"{percentile(seconds, 0.5) * 1e3:>7.1f} ms {percentile(seconds, 0.99) * 1e3:>6.0f} ms "
                f"{outcome.sent / 1e6:>7.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
