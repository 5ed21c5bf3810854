"""Ports that a process of its own is told to listen on."""

import socket

_HELD: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else on this machine gets while the tests run.

    It stays bound here without listening. A server that sets SO_REUSEADDR, as each does, can listen on it all the
    same, and can be stopped and started again on it; a bind to port 0 and a connection never get it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])
