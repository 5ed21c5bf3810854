"""The front: it takes every connection, reads a request's head, and carries its bytes to a process and back.

A connection carries one request. Nothing of a body is read here: keys, limits and answers are the processes' own.
"""

import asyncio
import contextlib
import json
import logging
import socket
import time

from worker.core.errors import EngineFailure, Overloaded, WorkerError
from worker.service.usage import request_id
from worker.transport.processes.head import END, MAX_HEAD_BYTES, BadHead, Head, parse_head
from worker.transport.processes.merging import ProcessAnswer, merge, parse_answer
from worker.transport.processes.table import Process, ProcessTable
from worker.transport.web.connections import Connections
from worker.wire.errors import encode_error

_LOG = logging.getLogger(__name__)
_WAITING = 2_048  # connections that the system holds until they are taken
_PIECE = 256 * 1024
_WAIT_S = 20.0  # for a process to listen: one that ended is there again by then
_ASKED_S = 10.0
_LINGER_S = 2.0
_UNREAD_S = 60.0  # as long as an answer may lie at a lone process
_JSON = "content-type: application/json"
_STARTING = json.dumps({"status": "starting"}).encode()
# The answers to health checks while no process listens yet.
_HEALTH = {
    "/ping": ProcessAnswer(0, 204, (), b""),
    "/health": ProcessAnswer(0, 200, (_JSON,), _STARTING),
    "/ready": ProcessAnswer(0, 503, (_JSON,), _STARTING),
}


class _Caller:
    """A caller's connection, as the books of connections know it."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.connection = connection
        self.address = address

    def check(self, now: float) -> None:
        """Do nothing: each wait here has its own end."""

    def make_room(self) -> None:
        """End, for another connection."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Front:
    """Serves the port for the processes of `table`. `prefix` is the path below which a proxy shows the server.

    `connections` holds callers to the limits on connections and heads; those on bodies and answers are the processes'.
    """

    def __init__(self, table: ProcessTable, prefix: str = "", connections: Connections | None = None) -> None:
        self._table = table
        self._connections = connections or Connections()
        self._prefix = prefix
        self._conversations: set[asyncio.Task[None]] = set()

    async def serve(self, listening: socket.socket) -> None:
        """Take connections until cancelled. Those that were taken go on."""
        loop = asyncio.get_running_loop()
        listening.listen(_WAITING)
        listening.setblocking(False)
        while True:
            try:
                caller, address = await loop.sock_accept(listening)
            except OSError as error:  # no file descriptors left: others are given back
                _LOG.warning("a connection could not be taken: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            entry = _Caller(caller, address[0])
            if not self._connections.enter(entry, address[0]):
                caller.close()
                continue
            task = asyncio.create_task(self._converse(entry))
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)
            await asyncio.sleep(0)  # one that waits is there at once: a crowd would be taken in a single turn

    async def close(self, within_s: float) -> None:
        """Give open connections this time to end, and cut the rest."""
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=within_s)
        for task in [*self._conversations]:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _converse(self, entry: _Caller) -> None:
        try:
            with entry.connection as caller, contextlib.suppress(OSError):
                caller.setblocking(False)
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._answer(entry, caller)
                await _say_goodbye(caller)
        finally:
            self._connections.leave(entry)

    async def _answer(self, entry: _Caller, caller: socket.socket) -> None:
        try:
            received = await self._read_head(entry, caller)
            if received is None:
                return
            head = parse_head(received[0], self._prefix)
        except BadHead:
            await _send(caller, b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            return
        self._connections.work(entry)
        try:
            if head.is_of_all:
                answer = await self._ask_all(head)
                await _send(caller, answer.written(head.method == "HEAD"))
            else:
                await self._forward(head, received[1], entry)
        except WorkerError as error:
            await _send(caller, _refusal(head, error).written(head.method == "HEAD"))

    async def _read_head(self, entry: _Caller, caller: socket.socket) -> tuple[bytes, bytes] | None:
        """Return a request's head and what came behind it; None if there is no request. Raises BadHead."""
        loop, limits = asyncio.get_running_loop(), self._connections.limits
        data = b""
        try:
            async with asyncio.timeout(limits.head_s):
                while END not in data:
                    if len(data) > MAX_HEAD_BYTES:
                        raise BadHead
                    piece = await loop.sock_recv(caller, MAX_HEAD_BYTES)
                    if not piece:
                        return None
                    data += piece
                    self._connections.wait(entry, len(data))
        except TimeoutError:
            return None
        head, end, rest = data.partition(END)
        return head + end, rest

    async def _forward(self, head: Head, begun: bytes, entry: _Caller) -> None:
        """Carry a request to its process and the answer back. Raises EngineFailure if the process ends before that."""
        number = self._table.owner(head.process, head.key)
        with await self._connect(number, brings_work=head.brings_work) as process:
            if await _exchange(entry.connection, process, head.forwarded(entry.address) + begun) == 0:
                raise EngineFailure("The process that this request was given to ended; send it again.")

    async def _connect(self, number: int | None, *, brings_work: bool) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            process = await self._table.choose(number, _WAIT_S)
            if process is None:
                raise EngineFailure("The process that has to answer this is being started; send it again in a while.")
            connection = _unix_socket()
            try:
                await loop.sock_connect(connection, str(process.address))
            except OSError:
                connection.close()
                self._table.report(process.number, None)
                continue
            except BaseException:
                connection.close()
                raise
            if brings_work:
                process.sent.append(time.monotonic())
            return connection

    async def _ask_all(self, head: Head) -> ProcessAnswer:
        if not self._table.listening and head.path in _HEALTH:
            return _HEALTH[head.path]
        await self._table.choose(None, _WAIT_S)
        asked = (self._ask(process, head) for process in self._table.listening)
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        if not answers:
            raise Overloaded("No process answers; try again in 5 seconds.", details={"retry_after_s": 5})
        return merge(head.path, answers, head.target.partition("?")[2])

    async def _ask(self, process: Process, head: Head) -> ProcessAnswer | None:
        """Return what one process answers; None if it does not."""
        loop = asyncio.get_running_loop()
        pieces = []
        with _unix_socket() as connection:
            try:
                async with asyncio.timeout(_ASKED_S):
                    await loop.sock_connect(connection, str(process.address))
                    await loop.sock_sendall(connection, head.asked_of_all())
                    while piece := await loop.sock_recv(connection, _PIECE):
                        pieces.append(piece)
            except (OSError, TimeoutError):
                return None
        return parse_answer(process.number, b"".join(pieces))


async def _send(caller: socket.socket, data: bytes) -> None:
    """Send to a caller or a process. Raises OSError, TimeoutError among them where nothing is taken for a minute."""
    async with asyncio.timeout(_UNREAD_S):
        await asyncio.get_running_loop().sock_sendall(caller, data)


async def _exchange(caller: socket.socket, process: socket.socket, begun: bytes) -> int:
    """Carry bytes both ways until the process has answered or the caller has left. Returns the bytes answered.

    A caller who left counts as answered: nobody reads what would be said.
    """
    there = asyncio.create_task(_carry(caller, process, begun))
    back = asyncio.create_task(_carry(process, caller))
    try:
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        if there.done() and not back.done() and not there.result()[1]:
            # The process takes no more of the body: it has answered already, or it is gone.
            await asyncio.wait({back})
        return back.result()[0] if back.done() else 1
    finally:
        there.cancel()
        back.cancel()
        await asyncio.gather(there, back, return_exceptions=True)


async def _carry(source: socket.socket, sink: socket.socket, begun: bytes = b"") -> tuple[int, bool]:
    """Carry bytes one way. Returns how many, and if the source ended (else the sink takes no more)."""
    loop = asyncio.get_running_loop()
    carried = 0
    piece = begun
    while True:
        if piece:
            try:
                await _send(sink, piece)
            except OSError:
                return carried, False
            carried += len(piece)
        try:
            piece = await loop.sock_recv(source, _PIECE)
        except OSError:
            return carried, True
        if not piece:
            return carried, True


async def _say_goodbye(caller: socket.socket) -> None:
    """End a connection so that the caller reads the answer first, even if some of their request was never read."""
    loop = asyncio.get_running_loop()
    caller.shutdown(socket.SHUT_WR)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while await loop.sock_recv(caller, _PIECE):
                pass


def _unix_socket() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    return connection


def _refusal(head: Head, error: WorkerError) -> ProcessAnswer:
    sent = request_id.accept(head.headers.get("x-request-id"))
    body = encode_error(error, sent)
    status = 429 if isinstance(error, Overloaded) else 503
    headers = (_JSON, f"x-request-id: {sent}", "retry-after: 5")
    return ProcessAnswer(0, status, headers, json.dumps(body).encode())
