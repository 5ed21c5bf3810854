"""The bytes of requests that are being received: bounded in all, for each caller, and in memory."""

import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import IO

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from worker.core.errors import Overloaded
from worker.transport.web.auth import caller_of
from worker.transport.web.connections import network_of

# Twenty-megabyte images and a sixty-four-megabyte video, as base64, with some room.
MAX_BODY_BYTES = 120_000_000
MAX_INCOMING_BYTES = 512_000_000
RETRY_AFTER_S = 5
# What all bodies may have in memory before they go on in files: usual traffic never does, and an attack costs no more.
MAX_MEMORY_BYTES = 16_000_000
LEAST_SPILT = 4_096  # two thousand bodies keep 8 MB more by that


class Incoming:
    """The books of bodies and messages that are being received. One caller may have half of all."""

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES, max_bytes: int = MAX_INCOMING_BYTES) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_bytes = max(max_bytes, max_body_bytes)
        self.max_caller_bytes = max(self.max_bytes // 2, max_body_bytes)
        self.bytes = 0
        self.in_memory = 0
        """Of bodies; the rest of them is in files."""
        self._callers: dict[str, int] = {}

    @contextmanager
    def account(self, caller: str) -> "Iterator[Account]":
        """Return an account of this caller's. When it is closed, nothing of it is held any more."""
        account = Account(self, caller)
        try:
            yield account
        finally:
            account.hold(0)

    def check(self, caller: str, more: int) -> None:
        """Raise Overloaded if there is no room for so many bytes more of this caller."""
        if self._callers.get(caller, 0) + more > self.max_caller_bytes:
            raise _full("your requests", self.max_caller_bytes)
        if self.bytes + more > self.max_bytes:
            raise _full("all requests", self.max_bytes)

    def move(self, caller: str, more: int) -> None:
        """Note so many bytes more, or fewer, of this caller, unchecked."""
        self.bytes += more
        self._callers[caller] = self._callers.get(caller, 0) + more
        if not self._callers[caller]:
            del self._callers[caller]

    async def read(self, request: Request) -> bytes:
        """Return the body of `request`. Raises what `stream` does."""
        async with aclosing(self.stream(request)) as chunks:
            with closing(_Whole(self)) as whole:
                async for chunk in chunks:
                    whole.add(chunk)
                return whole.take()

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body of `request` as it comes, read no further than allowed. Close it once it was used.

        Raises HTTPException 413, and 400 where the other side hangs up; Overloaded, for a body that says its size
        before any of it is read.
        """
        too_large = HTTPException(
            413,
            f"The request's body is larger than the {self.max_body_bytes / 1e6:g} MB that are taken here; send less, "
            "such as an image's URL in its place, or let the operator raise MAX_BODY_MB.",
        )
        caller = name_of(request)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            if int(declared) > self.max_body_bytes:
                raise too_large
            self.check(caller, int(declared))
        received = 0
        with self.account(caller) as account:
            try:
                async for chunk in request.stream():
                    received += len(chunk)
                    if received > self.max_body_bytes:
                        raise too_large
                    account.hold(received)
                    yield chunk
            except ClientDisconnect:  # nobody hears it, and nothing is wrong here
                raise HTTPException(400, "The connection ended before the body was whole; send it again.") from None


class Account:
    """The bytes that one request, or one WebSocket, has in memory."""

    def __init__(self, books: Incoming, caller: str) -> None:
        self._books = books
        self._caller = caller
        self._held = 0

    def hold(self, count: int) -> None:
        """Hold so many bytes from now on. Raises Overloaded, and holds what it held, if there is no room for more."""
        if count > self._held:
            self._books.check(self._caller, count - self._held)
        self._books.move(self._caller, count - self._held)
        self._held = count

    def hand_over(self, caller: str) -> None:
        """Have this be another caller's: theirs whose key has come."""
        self._books.move(self._caller, -self._held)
        self._books.move(caller, self._held)
        self._caller = caller


def name_of(connection: HTTPConnection) -> str:
    """Return the name of the sender of an admitted request; without keys it is their address."""
    name = caller_of(connection).name
    return f"key {name}" if name is not None else network_of(connection.client.host if connection.client else "")


class _Whole:
    """The chunks of one body, in memory, or in a file once all bodies together have taken their part of the memory."""

    def __init__(self, books: Incoming) -> None:
        self._books = books
        self._chunks: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._in_memory = 0

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._in_memory += len(chunk)
        self._books.in_memory += len(chunk)
        if self._books.in_memory > MAX_MEMORY_BYTES and self._in_memory > LEAST_SPILT:
            self._spill()

    def take(self) -> bytes:
        """Return the body, and keep nothing of it."""
        if self._file is None:
            return b"".join(self._chunks)
        self._spill()
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        self._books.in_memory -= self._in_memory
        self._in_memory = 0
        self._chunks = []
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        # On the event loop: it goes to the system's own memory, at gigabytes a second, and no pool can hold it up.
        try:
            if self._file is None:
                # It lives as long as the body; without a buffer of its own, which would be as much again.
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            rest = memoryview(b"".join(self._chunks))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            raise _full("all requests", MAX_MEMORY_BYTES) from None
        self._books.in_memory -= self._in_memory
        self._in_memory = 0
        self._chunks = []


def _full(whose: str, limit: int) -> Overloaded:
    return Overloaded(
        f"{limit / 1e6:g} MB of {whose} are being received, which is all that is taken at once (MAX_INCOMING_MB, "
        f"MAX_MESSAGE_MB); come again in {RETRY_AFTER_S} seconds.",
        details={"retry_after_s": RETRY_AFTER_S},
    )
