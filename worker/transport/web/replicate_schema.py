"""Replicate's JSON: predictions, models with the schema of their inputs, files, refusals."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue

from worker.core.answer import Answer
from worker.core.errors import WorkerError
from worker.core.result import Progress
from worker.media.images import to_base64
from worker.service.jobs.record import JobRecord
from worker.service.jobs.record import Status as JobStatus
from worker.transport.web.errors import Failure, json_response
from worker.transport.web.openapi import Documented

_STATUS: Mapping[JobStatus, str] = {
    JobStatus.QUEUED: "starting",
    JobStatus.RUNNING: "processing",
    JobStatus.COMPLETED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.TIMED_OUT: "failed",
    JobStatus.CANCELLED: "canceled",
}
_LONGEST = 2_000  # characters of a text that is said back: longer ones are images
_BAR = 20
_EARLY_S = 1.0  # a job's time began with the first byte of its request
CREATE: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": True,
    "properties": {
        "input": {"type": "object"},
        "webhook": {"type": ["string", "null"]},
        "webhook_events_filter": {
            "type": ["array", "null"],
            "items": {"enum": ["start", "output", "logs", "completed"]},
        },
        "stream": {"type": ["boolean", "null"]},
    },
}


class ReplicateError(Documented):
    """Any failure."""

    title: str
    detail: str = Field(description="One sentence.")
    status: int
    code: str


class Prediction(Documented):
    """A job, with its output once it has one."""

    id: str
    model: str
    version: str
    input: dict[str, JsonValue]
    output: list[str] | None
    logs: str
    error: str | None
    error_code: str | None = None
    deadline: str | None = None
    status: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    metrics: dict[str, JsonValue]
    urls: dict[str, str]


class Predictions(BaseModel):
    """A page of predictions."""

    next: str | None
    previous: str | None
    results: list[Prediction]


class Version(Documented):
    """A model's only version, with the schema of its inputs."""

    id: str
    created_at: str
    cog_version: str
    openapi_schema: dict[str, JsonValue]


class Versions(BaseModel):
    """All of them: one."""

    next: str | None
    previous: str | None
    results: list[Version]


class ReplicateModel(Documented):
    """A model by owner and name; OpenAI's four keys stand beside Replicate's."""

    url: str
    owner: str
    name: str
    description: str | None
    visibility: str
    run_count: int
    latest_version: Version | None
    id: str
    object: str
    created: int
    owned_by: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, and when. `notes` say what of it has no effect; after `lifetime_s` it was to be cancelled."""

    model: str
    input: Mapping[str, JsonValue]
    created_at: datetime
    notes: tuple[str, ...] = ()
    lifetime_s: float | None = None

    @property
    def deadline(self) -> datetime | None:
        """When the caller has it cancelled."""
        return None if self.lifetime_s is None else self.created_at + timedelta(seconds=self.lifetime_s)


def encode_failure(failure: Failure) -> Response:
    """Write a failure as a problem of RFC 7807, which is how that API's clients read it."""
    sentence = failure.message
    if models := failure.supported_models:
        sentence += f" There are {', '.join(models)}."
    body: dict[str, JsonValue] = {
        "title": HTTPStatus(failure.status).phrase,
        "detail": sentence,
        "status": failure.status,
        "code": failure.code,
    }
    return json_response(body, failure.status, failure.headers)


def version_of(model: str) -> str:
    """Return the id of a model's version: 64 hex digits, as there, of the model's own id."""
    return hashlib.sha256(model.encode()).hexdigest()


def encode_prediction(
    record: JobRecord, asked: Asked, address: str, *, as_url: bool, status: str | None = None
) -> dict[str, JsonValue]:
    """Write where a prediction stands, or that it is at `status`. Its files are below `address`, or data: URIs."""
    here = f"{address}/v1/predictions/{record.id}"
    error = _sentence(record.error) if record.error is not None else None
    state = _state(record, asked)
    is_cancelled = state in ("canceled", "aborted")
    prediction: dict[str, JsonValue] = {
        "id": record.id,
        "model": asked.model,
        "version": version_of(asked.model),
        "input": {name: _said(value) for name, value in asked.input.items()},
        "output": _output(record, here if as_url else None),
        "logs": _logs(record, asked),
        "error": None if is_cancelled else error,
        "status": status or state,
        "data_removed": False,
        "source": "api",
        "created_at": written(asked.created_at),
        "started_at": _at(record, asked, record.started_at),
        "completed_at": _at(record, asked, record.finished_at),
        "metrics": _metrics(record),
        "urls": {"get": here, "web": here, "cancel": f"{here}/cancel", "stream": f"{here}/stream"},
    }
    if record.error is not None and not is_cancelled:
        prediction["error_code"] = record.error.code
    if asked.deadline is not None:
        prediction["deadline"] = written(asked.deadline)
    return prediction


def _state(record: JobRecord, asked: Asked) -> str:
    """Return where a prediction stands. Its caller's own time limit cancels it, or aborts it before its work began."""
    lived = (record.finished_at or 0.0) - record.created_at
    if record.status is JobStatus.TIMED_OUT and asked.lifetime_s is not None and lived > asked.lifetime_s - _EARLY_S:
        return "aborted" if record.started_at is None else "canceled"
    return _STATUS[record.status]


def files_of(record: JobRecord, here: str | None) -> list[str]:
    """Return the addresses of a finished job's files: in a bucket, below `here`, or as data: URIs without it."""
    answer = record.answer
    if not isinstance(answer, Answer):
        return []
    return [
        file.url or (f"{here}/output/{index}" if here else f"data:{file.media_type};base64,{to_base64(file.data)}")
        for index, file in enumerate(answer.files)
    ]


def log_line(progress: Progress) -> str:
    """Write progress as the bar that clients read percents from."""
    if progress.phase != "inference" or not progress.total:
        return f"{progress.phase}: {progress.message or progress.step}\n"
    done = progress.step * _BAR // progress.total
    bar = f"{'#' * done}{' ' * (_BAR - done)}"
    return f"{100 * progress.step // progress.total:3d}%|{bar}| {progress.step}/{progress.total}\n"


def _sentence(error: WorkerError) -> str:
    """Return an error's sentence, with the models to choose from if one was named that is not there."""
    models = error.details.get("supported_models")
    return f"{error.message} There are {', '.join(map(str, models))}." if isinstance(models, list) else error.message


def _output(record: JobRecord, here: str | None) -> JsonValue:
    files: list[JsonValue] = [*files_of(record, here)]
    return files or None


def _logs(record: JobRecord, asked: Asked) -> str:
    warnings = record.answer.warnings if isinstance(record.answer, Answer) else ()
    last = log_line(record.progress) if record.progress is not None else ""
    return last + "".join(f"{note}\n" for note in (*asked.notes, *warnings))


def _metrics(record: JobRecord) -> dict[str, JsonValue]:
    if not record.over:
        return {}
    seconds = record.execution_ms / 1000
    metrics: dict[str, JsonValue] = {"predict_time": seconds, "total_time": seconds + record.delay_ms / 1000}
    if isinstance(record.answer, Answer):
        metrics["image_count"] = len(record.answer.files)
    return metrics


def _said(value: JsonValue) -> JsonValue:
    """Return a value of an input as it is said back: an image is not, it is megabytes."""
    if isinstance(value, str) and (len(value) > _LONGEST or value.startswith("data:")):
        return f"{value[:40]}…"
    return [_said(item) for item in value] if isinstance(value, list) else value


def _at(record: JobRecord, asked: Asked, when: float | None) -> str | None:
    return None if when is None else written(asked.created_at + timedelta(seconds=when - record.created_at))


def written(moment: datetime) -> str:
    """Return a moment as that API writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """Return this moment as that API writes it."""
    return written(datetime.now(UTC))
