"""The JSON of another worker, read: its results, its progress and its failures."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar, cast, get_args

import pybase64
from pydantic import JsonValue

from worker.core.adapter import AdapterReport
from worker.core.errors import EngineFailure, WorkerError
from worker.core.finishing import SafetyVerdict
from worker.core.image import MaskReading
from worker.core.model import Kind, Task
from worker.core.precision import PRECISIONS, Offload, Quantizer, Weights
from worker.core.quality import QUALITIES
from worker.core.request import CONTENT_TYPES, FRAME_FORMATS, Format
from worker.core.result import (
    AnswerFile,
    EncodedArtifact,
    JobResult,
    LoraReport,
    Phase,
    Progress,
    Reproduction,
    Timings,
    Usage,
)
from worker.wire.profile import decode_profile

T = TypeVar("T")
_PHASES = get_args(Phase)
MAX_PREVIEW_CHARS = 1_000_000


class Unreadable(ValueError):
    """An answer that is not of the form that a worker gives."""


def decode_result(output: JsonValue) -> JobResult:
    """Read a finished job, with its files as they came: bytes, or the places where they are. Raises Unreadable."""
    try:
        return _result(_object(output))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unreadable(f"the answer of another worker cannot be read ({type(error).__name__})") from error


def decode_progress(update: JsonValue) -> Progress | None:
    """Read a progress update; None for anything else."""
    if not isinstance(update, dict) or update.get("phase") not in _PHASES:
        return None
    step, total, preview = update.get("step"), update.get("total"), update.get("preview")
    if not isinstance(step, int) or not isinstance(total, int):
        return None
    image: AnswerFile | None = None
    if isinstance(preview, str) and len(preview) <= MAX_PREVIEW_CHARS:
        with suppress(ValueError):
            image = AnswerFile("jpeg", pybase64.b64decode(preview, validate=True))
    return Progress(cast(Phase, update["phase"]), step, total, str(update.get("message") or "")[:300], image)


def decode_failure(body: JsonValue) -> WorkerError:
    """Read a failure: `{"error", "code", "field"?, "hint"?, "details"?, "retryable"?}`, or a sentence alone."""
    fields: Mapping[str, JsonValue] = body if isinstance(body, dict) else {"error": body}
    message, code = fields.get("error"), fields.get("code")
    kind = _KINDS.get(code, EngineFailure) if isinstance(code, str) else EngineFailure
    field, hint, details = fields.get("field"), fields.get("hint"), fields.get("details")
    retryable = fields.get("retryable")
    return kind(
        message if isinstance(message, str) and message else "The job failed.",
        field=field if isinstance(field, str) else None,
        hint=hint if isinstance(hint, str) else None,
        details=details if isinstance(details, dict) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
    )


def _result(body: Mapping[str, JsonValue]) -> JobResult:
    loras, adapters = _list(body.get("loras")), _list(body.get("adapters"))
    mask, quality = body.get("mask"), body.get("quality")
    return JobResult(
        artifacts=_artifacts(body),
        model=str(body["model"]),
        revision=_text(body.get("revision")),
        task=Task(str(body["task"])),
        prompt=str(body.get("prompt") or ""),
        parameters=_object(body["parameters"]),
        loras=tuple(map(_lora, loras)),
        adapters=tuple(map(_adapter, adapters)),
        safety=tuple(map(_verdict, _list(body.get("safety")))),
        timings=_timings(_object(body.get("timings") or {})),
        usage=_usage(_object(body.get("usage") or {})),
        reproduce=_reproduction(_object(body.get("reproduce") or {})),
        mask=cast(MaskReading, mask) if mask in get_args(MaskReading) else None,
        warnings=tuple(str(item) for item in _list(body.get("warnings"))),
        quality=quality if quality in QUALITIES else "exact",
        levers=_texts(body.get("levers")),
        weights=_weights(body),
        version=_text(body.get("version")),
        arm=_text(body.get("arm")),
        profile=decode_profile(body.get("profile")),
    )


def _weights(body: Mapping[str, JsonValue]) -> Weights | None:
    """Read the form in which a model's weights were; None where it is not told, or of a kind that is not known."""
    precision, quantizer, offload = (body.get(name) for name in ("precision", "quantizer", "offload"))
    if precision not in PRECISIONS:
        return None
    return Weights(
        precision,
        cast(Quantizer, quantizer) if quantizer in get_args(Quantizer) else None,
        cast(Offload, offload) if offload in get_args(Offload) else "none",
    )


def _artifacts(body: Mapping[str, JsonValue]) -> tuple[EncodedArtifact, ...]:
    kind = "video" if "video" in body or "videos" in body else "image"
    seeds = [_whole(seed) for seed in _list(body["seeds"])]
    if body["format"] not in CONTENT_TYPES:
        raise ValueError("a format that is not known")
    format_ = cast(Format, body["format"])
    files = tuple(_files(body, kind, format_))
    num_frames = _whole(body.get("num_frames") or 0)
    is_frames = num_frames > 0 and format_ in FRAME_FORMATS and kind == "image"
    each = len(files) // len(seeds) if is_frames else 1
    if not files or len(files) != each * len(seeds):
        raise ValueError("as many files as seeds are needed")
    width, height, fps = _whole(body["width"]), _whole(body["height"]), _number(body.get("fps") or 0.0)
    return tuple(
        EncodedArtifact(files[index * each : (index + 1) * each], seed, width, height, num_frames, fps)
        for index, seed in enumerate(seeds)
    )


def _files(body: Mapping[str, JsonValue], kind: str, format_: Format) -> Iterator[AnswerFile]:
    """Yield the files of an answer, which holds one as `image` and several as `images`; a video's likewise."""
    several = body.get(f"{kind}s")
    for text in [body[kind]] if several is None else _list(several):
        if not isinstance(text, str) or not text:
            raise ValueError("a file that is no text")
        if f"{kind}_url" in body:
            yield AnswerFile(format_, url=text)
        elif f"{kind}_path" in body:
            yield AnswerFile(format_, path=text)
        else:
            yield AnswerFile(format_, pybase64.b64decode(text, validate=True))


def _lora(item: JsonValue) -> LoraReport:
    fields = _object(item)
    return LoraReport(
        model=str(fields["model"]),
        weight=_number(fields.get("weight", 1.0)),
        matched=_whole(fields.get("matched", 0)),
        total=_whole(fields.get("total", 0)),
        sha256=_text(fields.get("sha256")),
        algorithm=str(fields.get("algorithm") or "lora"),
        unmatched=_texts(fields.get("unmatched")),
        trigger_words=_texts(fields.get("trigger_words")),
    )


def _adapter(item: JsonValue) -> AdapterReport:
    fields = _object(item)
    return AdapterReport(
        Kind(str(fields["kind"])),
        str(fields["model"]),
        _number(fields.get("weight", 1.0)),
        _text(fields.get("sha256")),
        _texts(fields.get("tokens")),
    )


def _verdict(item: JsonValue) -> SafetyVerdict:
    fields = _object(item)
    return SafetyVerdict(
        flagged=bool(fields["flagged"]), label=str(fields.get("label") or ""), score=_number(fields["score"])
    )


def _timings(fields: Mapping[str, JsonValue]) -> Timings:
    queue_s, download_s, load_s, inference_s = (
        _number(fields.get(name) or 0.0) for name in ("queue_s", "download_s", "load_s", "inference_s")
    )
    return Timings(queue_s, download_s, load_s, inference_s, _whole(fields.get("batch_size") or 1))


def _usage(fields: Mapping[str, JsonValue]) -> Usage:
    cost = fields.get("cost_usd")
    return Usage(
        gpu_seconds=_number(fields.get("gpu_seconds") or 0.0),
        images=_whole(fields.get("images") or 0),
        pixel_steps=_whole(fields.get("pixel_steps") or 0),
        peak_memory_gb=_number(fields.get("peak_memory_gb") or 0.0),
        bytes_downloaded=_whole(fields.get("bytes_downloaded") or 0),
        cost_usd=None if cost is None else _number(cost),
    )


def _reproduction(fields: Mapping[str, JsonValue]) -> Reproduction:
    versions = _object(fields.get("versions") or {})
    return Reproduction(
        model=str(fields.get("model") or ""),
        loras=_texts(fields.get("loras")),
        versions={name: str(version) for name, version in versions.items()},
        input=_object(fields.get("input") or {}),
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TypeError("an object is needed")
    return value


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(str(item) for item in _list(value))


def _number(value: JsonValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("a number is needed")
    return value  # 8 stays 8


def _whole(value: JsonValue) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is needed")
    return value


def _descendants(kind: type[T]) -> Iterator[type[T]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


_KINDS: Mapping[str, Callable[..., WorkerError]] = {kind.code: kind for kind in _descendants(WorkerError)}
