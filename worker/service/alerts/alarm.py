"""One rule over time: quiet, pending while it is beyond its bound, firing once that lasted, and quiet again."""

from dataclasses import dataclass
from typing import Literal

from worker.service.alerts.measures import MEASURES, Readings, Window
from worker.service.alerts.schema import Rule
from worker.service.usage.record import Record

State = Literal["quiet", "pending", "firing"]


@dataclass(frozen=True, slots=True)
class AlertState:
    """Where a rule stands. `value` is None where nothing is known; `since_s` is for how long it has been so."""

    name: str
    rule: Rule
    state: State
    value: float | None
    since_s: float


class Alarm:
    """The state of one rule. Used on one event loop; times are time.monotonic's."""

    def __init__(self, name: str, rule: Rule, now: float) -> None:
        self.name = name
        self.rule = rule
        self.window = Window(rule)
        self.state: State = "quiet"
        self.value: float | None = None
        self._since = now

    def note(self, record: Record, now: float) -> None:
        """Count one operation."""
        self.window.note(record, now)

    def look(self, readings: Readings, now: float, *, is_last: bool = False) -> bool:
        """Look at the rule's measure. Return True if it began or ceased to fire, so that somebody has to be told.

        What is not known is not beyond the bound. At the last look a lost engine does not wait for `for_s`.
        """
        self.value = MEASURES[self.rule.measure](self.rule, self.window.counts(now), readings)
        before = self.state
        self._move(self._next(now, is_last=is_last), now)
        return (before == "firing") != (self.state == "firing")

    def report(self, now: float) -> AlertState:
        """Return where the rule stands."""
        return AlertState(self.name, self.rule, self.state, self.value, now - self._since)

    def _next(self, now: float, *, is_last: bool) -> State:
        if self.state == "firing":
            return "quiet" if self.value is None or self.rule.within(self.value) else "firing"
        if self.value is None or not self.rule.beyond(self.value):
            return "quiet"
        waited_s = now - self._since if self.state == "pending" else 0.0
        at_once = is_last and self.rule.measure == "lost"
        return "firing" if at_once or waited_s >= self.rule.for_s else "pending"

    def _move(self, state: State, now: float) -> None:
        if state != self.state:
            self.state, self._since = state, now
