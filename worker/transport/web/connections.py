"""The connections to the HTTP server: how many there may be, whose they are, and how long each may keep it waiting.

A connection waits while no whole request has come on it: it is new, idle, or amid the head of a request. Those cost
their callers nothing, so they make room for others when there are too many; one that has asked for something stays.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

_SWEEP_S = 1.0
_AT_ONCE = 32
_MAX_LINGERING = 256


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections and on what comes before a body. Sizes are bytes, times seconds."""

    connections: int = 4_096
    connections_per_address: int = 2_048
    url_bytes: int = 8_000
    headers: int = 100
    header_bytes: int = 32_768
    unfinished_heads_bytes: int = 16 * 2**20
    """Of all connections together."""
    small_head_bytes: int = 4_096
    large_heads_bytes: int = 16 * 2**20
    """Of all requests under way, or pipelined behind one: of heads that are no small ones."""
    pipelined: int = 16
    """Requests that may be sent before the answer to the first."""
    head_s: float = 10.0
    patience_s: float = 12.0
    """How long a body, or a message of a WebSocket, may stand still."""
    body_bytes_per_s: int = 1_000
    """What must come for that time to be given back."""
    linger_s: float = 10.0
    """How long the rest of a body is read whose request is answered."""
    keep_alive_s: float = 75.0
    unread_s: float = 60.0
    """How long an answer may lie here of which nothing is taken."""


class Connection(Protocol):
    """A connection as its books know it."""

    def check(self, now: float) -> None:
        """End, if the other side has kept the server waiting for too long. `now` is the loop's time."""
        ...

    def make_room(self) -> None:
        """End, for another connection."""
        ...


class Connections:
    """The books of all connections of one server, on one event loop."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self._addresses: dict[Connection, str] = {}
        self._counts: dict[str, int] = {}
        # By address, in the order in which they began to wait: the bytes of an unfinished head.
        self._waiting: dict[str, dict[Connection, int]] = {}
        self._head_bytes = 0
        self._kept: dict[Connection, int] = {}
        self._kept_bytes = 0
        self._sweeping = False
        self.lingering = 0
        """Connections that are refused, and read a moment longer so that they hear of it."""

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._addresses])

    @property
    def may_linger(self) -> bool:
        """Whether one more connection may be read for a moment though it is refused."""
        return self.lingering < _MAX_LINGERING

    @property
    def head_bytes(self) -> int:
        """The bytes of all unfinished heads."""
        return self._head_bytes

    @property
    def kept_bytes(self) -> int:
        """The bytes of all large heads of requests under way."""
        return self._kept_bytes

    def enter(self, connection: Connection, host: str) -> bool:
        """Note a new connection from `host`, in the place of one that only waits if it must. False: there is none."""
        address = network_of(host)
        is_full = self._counts.get(address, 0) >= self.limits.connections_per_address
        if is_full and not self._end_oldest(address):
            return False
        if len(self._addresses) >= self.limits.connections and not self._end_oldest(self._longest_queue()):
            return False
        self.take_over(connection, host)
        self.wait(connection)
        return True

    def take_over(self, connection: Connection, host: str) -> None:
        """Note a connection whose place was free: another protocol goes on with it. It does not wait."""
        address = network_of(host)
        self._addresses[connection] = address
        self._counts[address] = self._counts.get(address, 0) + 1
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def leave(self, connection: Connection) -> None:
        """Note that a connection has ended. Of one that is not known nothing is noted."""
        self.work(connection)
        self.keep(connection, 0)
        address = self._addresses.pop(connection, None)
        if address is None:
            return
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]

    def wait(self, connection: Connection, head_bytes: int = 0) -> None:
        """Note that a connection waits, with so many bytes of an unfinished head."""
        address = self._addresses.get(connection)
        if address is None:
            return
        queue = self._waiting.setdefault(address, {})
        self._head_bytes += head_bytes - queue.get(connection, 0)
        queue[connection] = head_bytes
        while self._head_bytes > self.limits.unfinished_heads_bytes:
            self._end_oldest(self._longest_queue())

    def work(self, connection: Connection) -> None:
        """Note that a whole request has come on a connection."""
        address = self._addresses.get(connection, "")
        queue = self._waiting.get(address)
        if queue is None:
            return
        self._head_bytes -= queue.pop(connection, 0)
        if not queue:
            del self._waiting[address]

    def keep(self, connection: Connection, large_heads: int) -> bool:
        """Note the bytes of all large heads of a connection's requests under way. False: no room is left for more."""
        more = large_heads - self._kept.get(connection, 0)
        if more > 0 and self._kept_bytes + more > self.limits.large_heads_bytes:
            return False
        self._kept_bytes += more
        if large_heads:
            self._kept[connection] = large_heads
        else:
            self._kept.pop(connection, None)
        return True

    def _longest_queue(self) -> str:
        return max(self._waiting, key=lambda address: len(self._waiting[address]), default="")

    def _end_oldest(self, address: str) -> bool:
        """End the connection of this address that waits for longest. False if none waits."""
        oldest = next(iter(self._waiting.get(address, ())), None)
        if oldest is None:
            return False
        self.leave(oldest)
        oldest.make_room()
        return True

    def _sweep(self) -> None:
        self._check([*self._addresses])

    def _check(self, connections: list[Connection]) -> None:
        """Check a few, and the others after what else waits: a thousand that end at once would hold up all the rest."""
        loop = asyncio.get_running_loop()
        for connection in connections[:_AT_ONCE]:
            if connection in self._addresses:
                connection.check(loop.time())
        self._sweeping = bool(self._addresses)
        if len(connections) > _AT_ONCE:
            self._sweeping = True
            loop.call_soon(self._check, connections[_AT_ONCE:])
        elif self._sweeping:
            loop.call_later(_SWEEP_S, self._sweep)


def network_of(host: str) -> str:
    """Return what counts as one address: an IPv4 address, and of IPv6 what one customer is given, a /64."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ip_network((address, 64), strict=False))
    return host
