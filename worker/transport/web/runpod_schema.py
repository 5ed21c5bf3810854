"""RunPod's JSON of a job: its submission, its status, its result."""

import difflib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakKeyDictionary

from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.answer import Answer, AnyAnswer
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.service.jobs.record import DAY_S, JobOptions, JobRecord
from worker.service.jobs.record import Status as JobStatus
from worker.service.jobs.store import Counts
from worker.transport.progress import encode_progress
from worker.transport.web.state import State
from worker.wire.errors import encode_error
from worker.wire.parts import encode_parts
from worker.wire.request import input_of
from worker.wire.result import encode_answer

_JOB = ("input", "webhook", "policy", "s3Config")
_POLICY = ("executionTimeout", "ttl", "lowPriority")
PARTS_A_LOOK = 10  # RunPod's client waits a second between two looks, and ten for one at most
MIN_POLICY_MS, MAX_POLICY_MS = 1_000, 604_800_000  # up to a week, as on RunPod


class Status(StrEnum):
    """Where a job stands, in RunPod's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


_STATUS: Mapping[JobStatus, Status] = {
    JobStatus.QUEUED: Status.IN_QUEUE,
    JobStatus.RUNNING: Status.IN_PROGRESS,
    JobStatus.COMPLETED: Status.COMPLETED,
    JobStatus.FAILED: Status.FAILED,
    JobStatus.CANCELLED: Status.CANCELLED,
    JobStatus.TIMED_OUT: Status.TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job as it was submitted."""

    payload: JsonValue
    options: JobOptions


def decode_job(body: JsonValue) -> SubmittedJob:
    """Take `{"input", "webhook"?, "policy"?, "s3Config"?}` apart. Raises InvalidRequest and its kin."""
    if not isinstance(body, dict) or "input" not in body:
        raise InvalidRequest('The body must be {"input": {…}}; input is missing.', field="input")
    if not isinstance(body["input"], dict):
        raise InvalidRequest("input must be an object; see docs/api.md for its fields.", field="input")
    _check_names(body, _JOB, "a field beside input")
    policy = {} if body.get("policy") in (None, "", []) else body["policy"]
    if not isinstance(policy, dict):
        raise ParameterOutOfRange("policy must be an object.", field="policy")
    _check_names(policy, _POLICY, "a field of policy")
    if not isinstance(policy.get("lowPriority"), bool | None):
        raise ParameterOutOfRange("policy.lowPriority must be true or false.", field="policy")
    execution_ms, ttl_ms = (_milliseconds(policy, name) for name in ("executionTimeout", "ttl"))
    webhook = body.get("webhook")
    if webhook is not None and not isinstance(webhook, str):
        raise ParameterOutOfRange("webhook must be the text of a URL.", field="webhook")
    options = JobOptions(
        execution_timeout_s=execution_ms / 1000 if execution_ms else None,
        ttl_s=ttl_ms / 1000 if ttl_ms else DAY_S,
        webhook=webhook or None,
    )
    return SubmittedJob(input_of(body), options)


def encode_status(record: JobRecord) -> dict[str, JsonValue]:
    """Write a job's status, and no more."""
    return {"id": record.id, "status": _STATUS[record.status].value}


def encode_job(record: JobRecord, output: dict[str, JsonValue] | None = None) -> dict[str, JsonValue]:
    """Write a job as RunPod's /status does. Its progress is `output` until its answer is.

    `output` is the answer if it is encoded already: its files are megabytes.
    """
    body = encode_status(record)
    if record.status is not JobStatus.QUEUED:
        body["delayTime"] = record.delay_ms
    if record.over:
        body["executionTime"] = record.execution_ms
    if record.answer is not None:
        body["output"] = encode_answer(record.answer) if output is None else output
    elif record.error is not None:
        # The SDK of a worker moves everything but the sentence into output, and so it is here.
        details = encode_error(record.error, record.options.request_id or record.id)
        body["error"] = details.pop("error")
        body["output"] = details
    elif record.progress is not None:
        body["output"] = encode_progress(record.progress)
    return body


def encode_run(record: JobRecord) -> dict[str, JsonValue]:
    """Write a finished job for callers of either kind: readers of the result at the top, and readers of `output`."""
    answer = record.outcome()
    output = encode_answer(answer)
    body = output | encode_job(record, output)
    if isinstance(answer, Answer):
        body["lightning_enabled"] = bool(answer.reproduce.input.get("lightning"))
    return body


def encode_flat(record: JobRecord) -> dict[str, JsonValue]:
    """Write a finished job with its result at the top alone."""
    return {name: value for name, value in encode_run(record).items() if name != "output"}


class Streams:
    """What callers have not yet read of their jobs' streams."""

    def __init__(self) -> None:
        self._left: WeakKeyDictionary[JobRecord, deque[dict[str, JsonValue]]] = (
            WeakKeyDictionary()
        )  # gone with their jobs

    def read(self, record: JobRecord) -> dict[str, JsonValue]:
        """Write a job's status and its events since the last look: each update once, and the answer once.

        An answer in parts takes as many looks as it needs.
        """
        chunks: list[JsonValue] = [{"output": encode_progress(progress)} for progress in record.take_unread()]
        if (answer := record.take_answer()) is not None:
            self._left[record] = deque(_pieces(answer))
        left = self._left.get(record, deque())
        chunks += [{"output": left.popleft()} for _ in range(min(PARTS_A_LOOK, len(left)))]
        return {"status": _STATUS[record.status].value, "stream": chunks}


def _pieces(answer: AnyAnswer) -> list[dict[str, JsonValue]]:
    """Write an answer as its caller reads it from a stream: in parts if that was asked for, else in one piece."""
    if isinstance(answer, Answer) and answer.streamed:
        return encode_parts(answer)
    return [encode_answer(answer)]


def encode_health(counts: Counts, state: State) -> dict[str, JsonValue]:
    """Write the counts of jobs, and the state of the one worker behind this endpoint."""
    busy = counts.in_progress > 0
    return {
        "jobs": {
            "completed": counts.completed,
            "failed": counts.failed,
            "inProgress": counts.in_progress,
            "inQueue": counts.in_queue,
            "retried": counts.retried,
        },
        "workers": {
            "idle": int(state == "ready" and not busy),
            "initializing": int(state == "starting"),
            "ready": int(state == "ready"),
            "running": int(state == "ready" and busy),
            "throttled": 0,
            "unhealthy": int(state in ("failed", "lost")),
        },
    }


def check_retry(record: JobRecord) -> None:
    """Raise InvalidRequest for a job that cannot be run again."""
    if not record.can_be_retried:
        raise InvalidRequest(
            f"Only a job that is FAILED or TIMED_OUT can be retried; this one is {_STATUS[record.status].value}.",
            field="id",
        )


def _check_names(fields: dict[str, JsonValue], names: tuple[str, ...], kind: str) -> None:
    for name in fields:
        if name not in names:
            matches = difflib.get_close_matches(name[:80], names, n=1)
            fix = f"did you mean {matches[0]}?" if matches else f"there are {', '.join(names)}."
            raise UnknownParameter(f"{name[:80]} is not {kind}; {fix}", field=name[:80])


def _milliseconds(policy: dict[str, JsonValue], name: str) -> float | None:
    sent = policy.get(name)
    value = number_in(sent)
    if sent is None or sent == "" or value == 0:
        return None
    if value is None or not MIN_POLICY_MS <= value <= MAX_POLICY_MS:
        raise ParameterOutOfRange(
            f"policy.{name} must be a number of milliseconds between {MIN_POLICY_MS} and {MAX_POLICY_MS}.",
            field="policy",
        )
    return value
