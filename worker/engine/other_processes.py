"""Processes that work with this one, each on its own device: started anew, waited for, and ended with what they do."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

HERE = "127.0.0.1"
_LOOK_S = 0.5
# What another process does: its number and how many there are, the port of the first, and where its orders come from.
Work = Callable[[int, int, int, Connection], None]


class OtherProcesses:
    """All of `count` processes but the first, which is this one and listens at `port`."""

    def __init__(self, count: int, port: int, work: Work) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._others: list[tuple[SpawnProcess, Connection]] = []
        for number in range(1, count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=work, args=(number, count, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._others.append((process, ours))

    @property
    def ids(self) -> list[int]:
        """Their process ids."""
        return [process.pid or 0 for process, _ in self._others]

    def order(self, order: bytes) -> None:
        """Give all of them an order. Raises OSError where one has ended."""
        for _, orders in self._others:
            orders.send_bytes(order)

    def wait(self, seconds: float) -> None:
        """Wait until each has sent a word. Raises EOFError where one has ended, or takes longer than `seconds`."""
        for process, orders in self._others:
            left = seconds
            while not orders.poll(_LOOK_S):
                left -= _LOOK_S
                if left <= 0 or not process.is_alive():
                    raise EOFError
            orders.recv_bytes()

    def ended(self) -> str:
        """Say which of them have ended, by their numbers."""
        for process, _ in self._others:
            with suppress(ValueError):
                process.join(_LOOK_S)
        codes = [process.exitcode for process, _ in self._others]
        numbers = [f"number {number} (status {code})" for number, code in enumerate(codes, 1) if code is not None]
        return ", ".join(numbers).capitalize() or "One"

    def close(self) -> None:
        """End them at once: they hold nothing that is not here."""
        for process, orders in self._others:
            orders.close()
            process.kill()
        for process, _ in self._others:
            process.join(_LOOK_S)
        self._others = []
