"""The line of jobs that wait for a replica: those of the model that is there go before those that would evict it.

Without it two models that are asked for at once would take turns with every job, since each job is placed by itself.
A model keeps its place while jobs for it wait, and not for ever: once it had its turn, the others have theirs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.remote.replica import Choice

# The least turn of a model that others wait for, beside three times what it takes to load one.
TURN_S = 15.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of a model at a replica, until a time on the line's clock."""

    model: str
    until: float


class Line:
    """Who waits for which model, and whose turn it is where. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, int] = {}
        self._turns: dict[str, Turn] = {}

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Enclose the time for which a job for `model` waits to be sent."""
        self._waiting[model] = self._waiting.get(model, 0) + 1
        try:
            yield
        finally:
            self._waiting[model] -= 1
            if not self._waiting[model]:
                del self._waiting[model]

    def lets(self, choice: Choice) -> bool:
        """True if a job may go to the replica now: it evicts nothing that others wait for in their turn."""
        turn = self._turns.get(choice.replica)
        if choice.evicted is None or choice.evicted not in self._waiting or turn is None:
            return True
        return turn.model != choice.evicted or self._clock() >= turn.until

    def sent(self, model: str, choice: Choice) -> None:
        """Note that a job for `model` goes to a replica; a model that was not there begins its turn."""
        turn = self._turns.get(choice.replica)
        if turn is None or turn.model != model:
            length_s = choice.start_s + choice.move_s + max(TURN_S, 3 * choice.move_s)
            self._turns[choice.replica] = Turn(model, self._clock() + length_s)
