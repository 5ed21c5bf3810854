"""What is noted of one operation at its end, for whoever counts, traces or writes down."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.core import errors
from worker.core.errors import WorkerError
from worker.core.result import Timings, Usage
from worker.core.version import VersionChoice

OK = "ok"


@dataclass(frozen=True, slots=True)
class Record:
    """One operation that has ended. Of the caller's words it holds only the ids that they sent."""

    action: str
    job_id: str
    request_id: str
    caller: str | None
    traceparent: str | None
    outcome: str
    """`ok`, or the code of the error."""
    at: float
    """Wall time at its start, in seconds since 1970."""
    began: float
    """Its start on time.monotonic's clock, as all times below."""
    ended: float
    model: str
    """An id of models.yaml, `unregistered`, or an empty text for an action without a model: fit to be a label."""
    source: str | None
    """The model that generated, as a reference."""
    task: str | None
    accepted_at: float | None
    """The time of the job's acceptance; None if it was refused, or answered from memory."""
    timings: Timings | None
    """Timings of the generated job; None if it failed, or was answered from memory."""
    usage: Usage | None
    loras: int
    encode_s: float
    adapters: tuple[str, ...] = ()
    """The LoRAs and other adapters of the job, as references."""
    choice: VersionChoice | None = None
    """The version that served it, or was to serve it; None of a model without versions."""

    @property
    def seconds(self) -> float:
        """The duration of the whole operation, in seconds."""
        return self.ended - self.began

    @property
    def status(self) -> str:
        """The outcome in one of six words: ok, refused, cancelled, timed_out, shut_down, failed."""
        return OK if self.outcome == OK else STATUS.get(self.outcome, "failed")

    @property
    def stages(self) -> Iterator[tuple[str, float, float]]:
        """The stages that were measured: name, begin and end."""
        if self.accepted_at is not None:
            yield "accept", self.began, self.accepted_at
        if self.timings is not None:
            yield from ((stage.name, stage.began, stage.ended) for stage in self.timings.stages)
        if self.encode_s:
            yield "encode", self.ended - self.encode_s, self.ended


def _statuses() -> dict[str, str]:
    statuses: dict[str, str] = {}
    words = {
        errors.InvalidRequest: "refused",
        errors.AccessDenied: "refused",
        errors.Overloaded: "refused",
        errors.JobTimeout: "timed_out",
        errors.JobCancelled: "cancelled",
        errors.ShuttingDown: "shut_down",
    }
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, WorkerError):
            statuses[value.code] = next((words[parent] for parent in value.__mro__ if parent in words), "failed")
    return statuses


# Error code -> status.
STATUS = _statuses()
