"""The front over real sockets: small processes that say which they are, one that dies, callers who leave."""

import asyncio
import json
import socket

import pytest

from worker.transport.processes.front import Front
from worker.transport.processes.table import Process, ProcessTable


class Answering:
    """A process that answers with its number; it can wait, break off, or read nothing."""

    def __init__(self, folder, number):
        self.process = Process(number, folder / f"{number}.sock", load=0)
        self.requests = []
        self.how = "whole"
        self.left = asyncio.Event()
        self.go = asyncio.Event()

    async def start(self):
        self._server = await asyncio.start_unix_server(self._answer, self.process.address)
        return self

    def stop(self):
        self._server.close()

    async def _answer(self, reader, writer):
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.how == "wait":
                await reader.read()
                self.left.set()
            elif self.how == "refuse":
                writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
            elif self.how == "whole":
                body = str(self.process.number).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        finally:
            writer.close()


class Served:
    """A front on a port, over `count` such processes."""

    def __init__(self, folder, count):
        self._folder = folder
        self._count = count

    async def __aenter__(self):
        self.processes = [await Answering(self._folder, number + 1).start() for number in range(self._count)]
        self.table = ProcessTable([each.process for each in self.processes])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.front = Front(self.table)
        self._serving = asyncio.create_task(self.front.serve(self._listening))
        return self

    async def __aexit__(self, *_):
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._listening.close()
        await self.front.close(5)
        for process in self.processes:
            process.stop()

    async def ask(self, first, *lines, body=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write("\r\n".join([f"{first} HTTP/1.1", "Host: a", *lines, "", ""]).encode() + body)
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body


@pytest.fixture
async def served(tmp_path):
    async with Served(tmp_path, 3) as served:
        yield served


async def test_jobs_go_to_the_least_busy_process_and_polls_to_the_one_that_has_the_job(served):
    served.table.report(2, 5)
    taken = [await served.ask("POST /run") for _ in range(4)]
    assert sorted(body for _, body in taken) == [b"1", b"1", b"3", b"3"]
    assert [await served.ask(f"GET /v2/x/status/a-u{number}") for number in (3, 2, 1)] == [
        (200, b"3"),
        (200, b"2"),
        (200, b"1"),
    ]
    keyed = {(await served.ask("POST /run", "Idempotency-Key: k"))[1] for _ in range(6)}
    assert len(keyed) == 1


async def test_a_large_body_and_a_refusal_before_it_was_read_both_arrive(served):
    for process in served.processes:
        process.how = "refuse"
    assert await served.ask("POST /run", "Content-Length: 8000000", body=b"x" * 8_000_000) == (413, b"big")


async def test_a_caller_who_leaves_is_gone_for_the_process_too(served):
    for process in served.processes:
        process.how = "wait"
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"POST /run HTTP/1.1\r\nHost: a\r\n\r\n")
    await writer.drain()
    async with asyncio.timeout(60):
        while not any(process.requests for process in served.processes):
            await asyncio.sleep(0.01)
        writer.close()
        await next(process for process in served.processes if process.requests).left.wait()


async def test_a_process_that_ends_amid_a_request_is_told_as_such(served):
    for process in served.processes:
        process.how = "break off"
    status, body = await served.ask("POST /run")
    assert (status, json.loads(body)["code"], json.loads(body)["retryable"]) == (503, "engine_failure", True)


async def test_a_process_that_does_not_listen_is_passed_over_and_waited_for_where_only_it_can_answer(served):
    served.processes[0].stop()
    served.processes[0].process.address.unlink(missing_ok=True)
    assert {(await served.ask("POST /run"))[1] for _ in range(4)} == {b"2", b"3"}
    assert served.table.listening == [each.process for each in served.processes[1:]]
    asked = asyncio.create_task(served.ask("GET /v2/x/status/a-u1"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    await served.processes[0].start()
    served.table.report(1, 0)
    assert await asked == (200, b"1")


async def test_health_is_told_before_any_process_listens(served):
    for number in (1, 2, 3):
        served.table.report(number, None)
    assert (await served.ask("GET /ping"))[0] == 204
    assert (await served.ask("GET /ready"))[0] == 503
    assert await served.ask("GET /health") == (200, b'{"status": "starting"}')


async def test_what_is_no_request_is_400(served):
    assert (await served.ask("NONSENSE"))[0] == 400
    assert not any(process.requests for process in served.processes)
