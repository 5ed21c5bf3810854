"""F11: a thousand clients at once, on the default settings: each is answered, or told when to come back."""

import asyncio
import collections
import contextlib
import json
import subprocess
import sys
import time

import pytest

from tests.answers import files_of
from tests.faults.attacks import rss_mb
from tests.faults.turns import LONG_S, served
from worker.transport.web.health import PATHS
from worker.transport.web.layers import Turnstile

CLIENTS = 1_000
PINGER = """
import http.client, json, sys, threading, time
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("begun", flush=True)
pings = []
while not over.wait(0.02):
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    connection.request("GET", "/ping")
    connection.getresponse().read()
    pings.append(time.perf_counter() - began)
print(json.dumps(pings))
"""


async def ask(port, path, payload=None):
    """Send one request on a connection of its own; return status, headers, body and seconds."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b"" if payload is None else json.dumps(payload).encode()
    head = f"{'GET' if payload is None else 'POST'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    top, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, content, time.perf_counter() - began


async def crowd(port, clients, fields):
    """Let all clients ask at once, and return the answers."""
    return await asyncio.gather(*(ask(port, "/run", {"seed": index, **fields}) for index in range(clients)))


@contextlib.contextmanager
def pinging(port):
    """Ping from a process of its own meanwhile; yields the list that holds the seconds afterwards."""
    pings = []
    command = [sys.executable, "-c", PINGER, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "begun\n"
        yield pings
        pings += json.loads(child.communicate("")[0])


def counted(answers):
    """Count the answers by status; hold each to its word."""
    for status, headers, content, _ in answers:
        if status == 200:
            assert files_of(json.loads(content))
        else:
            assert (status, json.loads(content)["code"]) == (429, "overloaded")
            assert int(headers["retry-after"]) >= 1
    return collections.Counter(status for status, *_ in answers)


@pytest.mark.slow
def test_a_thousand_clients_at_once_are_all_answered(tmp_path, figures):
    fields = {"prompt": "an apple"}
    with served(tmp_path) as worker:
        asyncio.run(crowd(worker.port, 8, fields))  # warm
        before = rss_mb(worker.process.pid)
        with pinging(worker.port) as pings:
            answers = asyncio.run(crowd(worker.port, CLIENTS, fields))
        grown = rss_mb(worker.process.pid) - before
        worker.tell("turns")
        asyncio.run(crowd(worker.port, CLIENTS, fields))
        turns = worker.tell("told")
    statuses = counted(answers)
    figures("F11", "of 1,000 clients at once, drawn for", statuses[200], "", at_least=CLIENTS)
    figures("F11", "of them, taken in one turn of the event loop", turns["accepted"], "", at_most=4)
    long = [seconds for seconds in turns["longest"] if seconds > LONG_S]
    figures("F11", "turns over 25 ms of processor time", len(long), "", at_most=2, momentary=True)
    figures("F11", "memory of 1,000 clients at once", grown, "MB", at_most=300, momentary=True)
    # One that waits at the door is one of a hundred, and may wait for seconds.
    figures("F11", "longest /ping under 1,000 clients at once", max(pings) * 1000, "ms", at_most=500, momentary=True)
    p99 = sorted(pings)[int(len(pings) * 0.99)] * 1000
    figures("F11", "/ping p99 under 1,000 clients at once", p99, "ms", at_most=50, momentary=True)


async def test_a_crowd_is_let_in_one_by_one_and_a_ping_passes_by():
    order = []

    async def app(scope, receive, send):
        order.append(scope["path"])

    layer = Turnstile(app, open_to=PATHS)
    crowd_of = [asyncio.create_task(layer({"type": "http", "path": f"/{index}"}, None, None)) for index in range(100)]
    await asyncio.sleep(0)
    ping = asyncio.create_task(layer({"type": "http", "path": "/ping"}, None, None))
    await asyncio.gather(ping, *crowd_of)
    assert order.index("/ping") <= 2
    assert [path for path in order if path != "/ping"] == [f"/{index}" for index in range(100)]


async def test_newcomers_are_taken_before_the_next_is_let_in():
    order = []

    async def app(scope, receive, send):
        order.append(scope["path"])

    layer = Turnstile(app, open_to=PATHS)
    asked = []
    for index in range(50):  # as a loop takes them, one a turn
        path = "/ping" if index == 49 else f"/{index}"
        asked.append(asyncio.create_task(layer({"type": "http", "path": path}, None, None)))
        await asyncio.sleep(0)
    await asyncio.gather(*asked)
    assert order.index("/ping") <= 2
    assert len(order) == 50
