"""The one port of a replica, and the two ways in which a job can fail to come back from it.

A failure is one of three kinds, and only two of them are a platform's to report: a job that was *not taken* may go
elsewhere at once; of a job that was *lost sight of* nobody knows whether it is being drawn, so it is asked for by its
key first. The third, *accepted*, stays inside a platform: it asks by the id, and never sends the job again.
"""

from collections.abc import Mapping
from typing import Protocol

from pydantic import JsonValue

from worker.core.errors import WorkerError
from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.remote.platforms.question import Question
from worker.remote.replica import ReplicaState


class NotTaken(Exception):
    """The job did not reach the replica, or it was refused before any work: another one may have it.

    `error` is what the caller gets if no other replica is left. `retry_after_s` is the replica's own word on when to
    come back. `ill` is False for a replica that is only busy: that does not count against it.
    """

    def __init__(self, error: WorkerError, *, retry_after_s: float | None = None, ill: bool = True) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s
        self.ill = ill


class LostSight(Exception):
    """The replica may have the job, and does not answer. `error` is for the caller if that stays so."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(error.message)
        self.error = error


class Platform(Protocol):
    """One replica or endpoint, as a gateway sees it. Everything runs on one event loop."""

    @property
    def name(self) -> str:
        """The operator's name for it; no address, no key."""
        ...

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Have `job` generated, and follow it to its end; never longer than `job.stop` allows.

        `key` is the job's idempotency key, the same for every attempt. Progress and previews go to `emit`. When the
        task is cancelled, or the deadline passes, the job is taken back there too. The artifacts of the result are
        encoded: they are as they came. Raises WorkerError for the job's own end, as the replica reports it; NotTaken;
        LostSight.
        """
        ...

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Ask for a job that was lost sight of, by its key; None once it is certain that it is not there.

        Raises as `send` does; LostSight again where nobody can tell.
        """
        ...

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Have `question` answered, and return the answer as it came. Raises as `send` does."""
        ...

    async def observe(self) -> ReplicaState:
        """Look at the replica, and return its state. Never raises: one that does not answer is `resting`."""
        ...

    def state(self) -> ReplicaState:
        """Return the state as it is known now, with the jobs that were sent since it was last observed."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
