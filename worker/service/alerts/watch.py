"""The watch over the operator's rules: it hears of every operation, looks at the rules and has somebody told.

A look is arithmetic over a few counts, every ten seconds. Nothing of it is on a job's way.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from worker.service.alerts.alarm import Alarm, AlertState
from worker.service.alerts.measures import Readings
from worker.service.alerts.outlets import Notice, Outlets
from worker.service.alerts.schema import AlertsFile
from worker.service.usage.record import Record

_LOG = logging.getLogger(__name__)
EVERY_S = 10.0


async def _no_readings() -> Readings:
    return Readings()


class Alerts:
    """The rules of one worker, and where each stands. Used on one event loop. Without a file nothing is watched.

    `read` reads the worker as it is now, and `worker` is its name in what is told.
    """

    def __init__(
        self,
        file: AlertsFile | None = None,
        outlets: Outlets | None = None,
        read: Callable[[], Awaitable[Readings]] = _no_readings,
        worker: str = "",
    ) -> None:
        self._file = file
        self._outlets = outlets
        self._read = read
        self._worker = worker
        now = time.monotonic()
        self._alarms = [Alarm(name, rule, now) for name, rule in file.rules.items()] if file else []

    @property
    def firing(self) -> tuple[str, ...]:
        """The names of the rules that hold now."""
        return tuple(alarm.name for alarm in self._alarms if alarm.state == "firing")

    def states(self) -> tuple[AlertState, ...]:
        """Return where every rule stands."""
        now = time.monotonic()
        return tuple(alarm.report(now) for alarm in self._alarms)

    def note(self, record: Record) -> None:
        """Count one operation."""
        now = time.monotonic()
        for alarm in self._alarms:
            alarm.note(record, now)

    def close(self) -> None:
        """Do nothing: what is counted is only in memory."""

    def replace(self, file: AlertsFile) -> None:
        """Watch over these rules from now on. A rule that is the same keeps its counts and its state."""
        now = time.monotonic()
        before = {alarm.name: alarm for alarm in self._alarms}
        kept = {name: before[name] for name, rule in file.rules.items() if name in before and before[name].rule == rule}
        self._file = file
        self._alarms = [kept.get(name) or Alarm(name, rule, now) for name, rule in file.rules.items()]

    def remember(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add what earlier jobs cost, from this worker's lines of the usage log: a budget outlives a restart."""
        spent = sorted(_spent(lines))
        wall, now = time.time(), time.monotonic()
        for alarm in self._alarms:
            for at, usd, model in spent:
                if 0 <= wall - at < alarm.rule.over_s:
                    alarm.window.spend(model, usd, now - (wall - at))

    async def watch(self) -> None:
        """Look at the rules again and again. This runs until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    async def look(self, *, is_last: bool = False) -> None:
        """Look at every rule once, and have those told whom it concerns. Raises nothing of its own."""
        if not self._alarms or self._outlets is None or self._file is None:
            return
        try:
            readings = await self._read()
        except Exception as error:  # a watch that ends unheard is worse than none
            _LOG.warning("the alerts were not looked at: %s", type(error).__name__)
            return
        now = time.monotonic()
        for alarm in self._alarms:
            if alarm.look(readings, now, is_last=is_last):
                fires = alarm.state == "firing"
                notice = Notice(alarm.name, alarm.rule, fires, alarm.value, time.time(), self._worker)
                self._outlets.tell(notice, self._file)

    async def end(self, within_s: float) -> None:
        """Look for the last time, and give what is to be told so many seconds to arrive."""
        await self.look(is_last=True)
        if self._outlets is not None:
            await self._outlets.close(within_s)


def _spent(lines: Iterable[Mapping[str, Any]]) -> Iterable[tuple[float, float, str]]:
    """Yield when, how much and for which model each job cost something."""
    for line in lines:
        usd, at = line.get("cost_usd"), line.get("at")
        if isinstance(usd, int | float) and usd > 0 and isinstance(at, str):
            try:
                yield datetime.fromisoformat(at).timestamp(), float(usd), str(line.get("model") or "")
            except ValueError:
                continue
