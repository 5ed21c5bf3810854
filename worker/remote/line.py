"""The line of jobs that wait for a replica: who waits for what, and whose turn it is where.

Each job is placed by itself, and would forget the others: two models that are asked for at once would take turns with
every job, and a replica that rests would never be started for those that wait for a busy one. So a model keeps its
place while jobs for it wait; not for ever, for once it had its turn the others have theirs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from worker.remote.replica import Choice, ReplicaState

# The least turn of a model that others wait for, beside three times what it takes to load one.
TURN_S = 15.0
# A turn of fewer jobs than these goes on, but no longer than so many seconds more: where jobs take seconds each, turns
# of seconds alone are a few jobs long, and every other job waits for a load.
TURN_JOBS = 16
MORE_S = 45.0
# For which more jobs for a model are expected after one was sent: those of a burst come one by one.
LINGER_S = 1.0
# What a change of models costs at the least, however small they are.
CHANGE_S = 5.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of a model at a replica, until a time on the line's clock; when a job for it was last sent there.

    `jobs` were sent in this turn.
    """

    model: str
    until: float
    sent_at: float
    jobs: int = 1

    @property
    def ends(self) -> float:
        """When others have theirs."""
        return self.until if self.jobs >= TURN_JOBS else self.until + MORE_S


@dataclass(slots=True)
class Place:
    """One job's place in the line: its model, the replica that it waits for, and what it will take there."""

    model: str
    replica: str | None = None
    seconds: float = 0.0


class Line:
    """All that wait. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, int] = {}  # by model
        self._ahead: dict[str, float] = {}  # seconds, by replica
        self._turns: dict[str, Turn] = {}

    @contextmanager
    def waiting(self, model: str) -> Iterator[Place]:
        """Enclose the time for which a job for `model` waits to be sent."""
        place = Place(model)
        self._waiting[model] = self._waiting.get(model, 0) + 1
        try:
            yield place
        finally:
            self._move(place, None, 0.0)
            self._waiting[model] -= 1
            if not self._waiting[model]:
                del self._waiting[model]

    def states(self, states: Sequence[ReplicaState], place: Place) -> Sequence[ReplicaState]:
        """Return the replicas with the jobs of the others who wait for them in their queues."""
        self._move(place, None, 0.0)
        return [
            replace(state, queue_s=state.queue_s + ahead / max(1, state.workers))
            if (ahead := self._ahead.get(state.name, 0.0))
            else state
            for state in states
        ]

    def next(self, choices: Sequence[Choice], place: Place) -> Choice | None:
        """Return the choice of a job whose `choices` are in order; None if it has to wait for its turn.

        A replica that is at its model now is as good as one that is CHANGE_S sooner.
        """
        best = choices[0]
        at_it = [choice for choice in choices if self._is_at(choice.replica, place.model)]
        near = [choice for choice in at_it if choice.seconds <= best.seconds + CHANGE_S]
        # One that is later than waiting for the best takes is no help: it may have to start first.
        latest_s = best.seconds + max(CHANGE_S, self._held_s(best))
        soon = [choice for choice in choices if choice.seconds <= latest_s]
        chosen = next((choice for choice in [*near, *soon] if not self._held_s(choice)), None)
        wanted = chosen or best
        self._move(place, wanted.replica, wanted.busy_s)
        return chosen

    def sent(self, model: str, choice: Choice) -> None:
        """Note that a job for `model` goes to a replica; a model that was not there begins its turn."""
        now, turn = self._clock(), self._turns.get(choice.replica)
        length_s = choice.start_s + choice.move_s + max(TURN_S, 3 * choice.move_s)
        if turn is not None and turn.model == model:
            self._turns[choice.replica] = Turn(model, turn.until, now, turn.jobs + 1)
        else:
            self._turns[choice.replica] = Turn(model, now + length_s, now)

    def _is_at(self, replica: str, model: str) -> bool:
        turn = self._turns.get(replica)
        return turn is not None and turn.model == model

    def _held_s(self, choice: Choice) -> float:
        """Return for how long the replica is kept from a job that would evict what others want in their turn."""
        turn, now = self._turns.get(choice.replica), self._clock()
        if choice.evicted is None or turn is None or turn.model != choice.evicted or now >= turn.ends:
            return 0.0
        if choice.evicted in self._waiting:
            return turn.ends - now
        return max(0.0, turn.sent_at + LINGER_S - now)

    def _move(self, place: Place, replica: str | None, seconds: float) -> None:
        if place.replica is not None:
            self._ahead[place.replica] = max(0.0, self._ahead[place.replica] - place.seconds)
        if replica is not None:
            self._ahead[replica] = self._ahead.get(replica, 0.0) + seconds
        place.replica, place.seconds = replica, seconds
