"""Where the seconds went: of this process's start, and of the last jobs. Made of what is measured anyway."""

from collections import deque

from worker.core import moments
from worker.core.answer import JobTimeline, TimelineReport
from worker.service.usage.record import OK, Record

_KEPT = 64  # jobs


class Timeline:
    """The last jobs by their stages. Callers are shown their own."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[str | None, JobTimeline]] = deque(maxlen=_KEPT)

    def note(self, record: Record) -> None:
        """Note a generation that has ended, whatever its outcome."""
        if record.action != "generate":
            return
        if record.outcome == OK:
            moments.note("first job answered")
        stages = tuple((name, began - record.began, ended - began) for name, began, ended in record.stages)
        job = JobTimeline(record.job_id, record.model, record.outcome, record.at, record.seconds, stages)
        self._jobs.append((record.caller, job))

    def report(self, caller: str | None) -> TimelineReport:
        """Return the start, and the jobs of this caller, the last first."""
        own = tuple(job for by, job in reversed(self._jobs) if by == caller)
        return TimelineReport(moments.of_start(), own)
