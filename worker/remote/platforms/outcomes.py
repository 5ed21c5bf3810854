"""What the end of a job elsewhere means here: its result, its own failure, or a reason to try another replica."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.errors import (
    AccessDenied,
    DeviceLost,
    DiskFull,
    EngineFailure,
    InvalidRequest,
    JobCancelled,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    ShuttingDown,
    Unreachable,
    WorkerError,
)
from worker.core.result import JobResult
from worker.remote.platforms.platform import NotTaken
from worker.wire.receiving import Unreadable, decode_failure, decode_result

# Ends of a job that say something of the replica, and nothing of the job. True: the replica is ill.
_OF_THE_REPLICA: Mapping[type[WorkerError], bool] = {
    ShuttingDown: True,
    DeviceLost: True,
    Unreachable: True,
    Overloaded: False,
    OutOfMemory: False,  # a larger device may do
    DiskFull: False,
}


def lost(name: str) -> Unreachable:
    """Return the error of a job whose replica cannot be reached."""
    return Unreachable(f"The worker {name} does not answer; send the job again.")


def refusal(name: str, error: WorkerError, status: int, retry_after_s: float | None = None) -> Exception:
    """Return what a replica's refusal to take a job means: NotTaken, or the job's own error."""
    if isinstance(error, AccessDenied) or status in (401, 403):  # the gateway's own key, and no word of its callers'
        return NotTaken(Unreachable(f"The worker {name} refuses this gateway's key; the operator has to mend it."))
    if status == 429 or isinstance(error, Overloaded):
        return NotTaken(error, retry_after_s=retry_after_s or _seconds(error), ill=False)
    if isinstance(error, InvalidRequest):
        return elsewhere(error) or error
    return NotTaken(error)


def elsewhere(error: WorkerError) -> NotTaken | None:
    """Return NotTaken where another replica may well do what this one could not; None for the job's own end."""
    for kind, ill in _OF_THE_REPLICA.items():
        if isinstance(error, kind):
            return NotTaken(error, retry_after_s=_seconds(error), ill=ill)
    if isinstance(error, ModelNotFound) and error.field in (None, "model"):  # another models.yaml
        return NotTaken(error, ill=False)
    return None


def called(answer: JsonValue) -> Mapping[str, JsonValue]:
    """Return the answer of a worker that was called as an object, as RunPod's /status would tell it."""
    failed_there = isinstance(answer, dict) and "error" in answer
    return {"status": "FAILED" if failed_there else "COMPLETED", "output": answer}


def finished(name: str, outcome: Mapping[str, JsonValue]) -> JobResult:
    """Return the result of a job that is over, as RunPod's /status tells it. Raises NotTaken, and its WorkerError."""
    output = answered(name, outcome)
    try:
        return decode_result(output)
    except Unreadable:
        raise unreadable(name) from None


def answered(name: str, outcome: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the answer in an outcome. Raises as `finished` does."""
    output = outcome.get("output")
    if outcome.get("status") != "COMPLETED":
        error = failed(outcome)
        raise elsewhere(error) or error
    if not isinstance(output, dict):
        raise unreadable(name)
    return output


def unreadable(name: str) -> EngineFailure:
    """Return the error of an answer that is none."""
    return EngineFailure(
        f"The worker {name} finished the job, and its answer cannot be read; it is of another version, or the answer "
        "was too large for its platform."
    )


def failed(outcome: Mapping[str, JsonValue]) -> WorkerError:
    """Read the failure of a job: the sentence in `error`, all else in `output`."""
    output = outcome.get("output")
    details = output if isinstance(output, dict) else {}
    if outcome.get("status") == "CANCELLED" and "code" not in details:
        return JobCancelled("The job was cancelled where it ran.")
    return decode_failure({**details, "error": outcome.get("error") or details.get("error")})


def _seconds(error: WorkerError) -> float | None:
    seconds = error.details.get("retry_after_s")
    return float(seconds) if isinstance(seconds, int | float) else None
