"""The head of a request: as much as is needed to choose a process for it. The process reads everything else."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_HEAD_BYTES = 49_152  # a little more than a process takes, which says what is too much
END = b"\r\n\r\n"
_TARGET = re.compile(r"(?:https?://[^/?#]*)?(/[^?#]*)")
# An id ends in the number of its process; these are the addresses that hold one.
_OF_JOB = re.compile(
    r"/(?:v2/[^/]+/(?:status|stream|cancel|retry)|events|v1/images|v1/predictions)/[^/]+?-u(\d{1,4})"
    r"(?:/content|/cancel|/stream|/output/\d+)?"
)
# Every process is asked, and one answer is made of theirs.
_OF_ALL = re.compile(r"/(?:health|ping|ready|metrics|jobs|admin/alerts|v1/predictions|v2/[^/]+/health)")
_A1111 = "/sdapi/"
_PURGE = re.compile(r"/v2/[^/]+/purge-queue")


class BadHead(ValueError):
    """A head that no HTTP/1.1 request begins with."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one request. `path` has no query and, below a proxy's prefix, no prefix."""

    method: str
    target: str
    path: str
    lines: tuple[str, ...]
    headers: Mapping[str, str]

    @property
    def process(self) -> int | None:
        """The number of the process that the request's job belongs to, if its address names a job."""
        match = _OF_JOB.fullmatch(self.path)
        return int(match[1]) if match else None

    @property
    def key(self) -> str | None:
        """The Idempotency-Key: the same key always goes to the same process, which knows what came with it before.

        AUTOMATIC1111's API names no jobs: all of a caller's requests go to the process that knows their jobs.
        """
        key = self.headers.get("idempotency-key")
        return f"{_A1111}{self.headers.get('authorization', '')}" if self.path.startswith(_A1111) else key

    @property
    def is_of_all(self) -> bool:
        """True if every process is asked."""
        if self.method in ("GET", "HEAD"):
            return _OF_ALL.fullmatch(self.path) is not None
        return self.method == "POST" and _PURGE.fullmatch(self.path) is not None

    @property
    def brings_work(self) -> bool:
        """True if the request may be a job."""
        return self.method == "POST" or "upgrade" in self.headers

    def forwarded(self, address: str) -> bytes:
        """Return the head as it goes on, with the address that it came from at the end of X-Forwarded-For.

        A connection carries one request, unless it becomes a WebSocket.
        """
        origin = f"X-Forwarded-For: {address}"
        if self.headers.get("upgrade", "").lower() == "websocket":
            return self._written(self.method, self.lines, origin)
        return self._written(self.method, self._without("connection", "keep-alive"), origin, "Connection: close")

    def asked_of_all(self) -> bytes:
        """Return the head without a body, which none of these requests needs, and with one for the answer."""
        lines = self._without("connection", "keep-alive", "content-length", "transfer-encoding", "expect", "upgrade")
        method = "GET" if self.method == "HEAD" else self.method
        return self._written(method, lines, "Connection: close", *(["Content-Length: 0"] if method == "POST" else []))

    def _without(self, *names: str) -> tuple[str, ...]:
        return tuple(line for line in self.lines if line.partition(":")[0].strip().lower() not in names)

    def _written(self, method: str, lines: tuple[str, ...], *more: str) -> bytes:
        return "\r\n".join([f"{method} {self.target} HTTP/1.1", *lines, *more, "", ""]).encode("latin-1")


def parse_head(data: bytes, prefix: str = "") -> Head:
    """Read the bytes of a head, its empty line included. Raises BadHead."""
    first, *lines = data.removesuffix(END).decode("latin-1").lstrip("\r\n").split("\r\n")
    words = first.split(" ")
    match = _TARGET.fullmatch(words[1].partition("?")[0]) if len(words) == 3 else None
    if match is None or not words[0].isalpha() or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadHead
    if any(not line.partition(":")[1] or line[0] in " \t" for line in lines):
        raise BadHead
    pairs = (line.partition(":") for line in lines)
    path = match[1]
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    return Head(words[0], words[1], path, tuple(lines), {name.strip().lower(): text.strip() for name, _, text in pairs})
