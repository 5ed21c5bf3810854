"""Answers and progress as callers get them: files as base64, made here at the very end."""

import json
from collections.abc import Sequence

import pybase64
from pydantic import JsonValue

from worker.core.answer import (
    Answer,
    AnyAnswer,
    Inspection,
    ModelList,
    ModelSchema,
    PlanReport,
    Preloaded,
    TimelineReport,
    Unloaded,
    WorkerStatus,
)
from worker.core.discovery import Discovery, Updates
from worker.core.golden import GoldenComparison
from worker.core.precision import Weights
from worker.core.result import AnswerFile, JobFacts, Placement, Progress, StepReport
from worker.core.training import Trained, TrainingPlan, TrainingState
from worker.core.version import ComparisonReport, PairToJudge, VersionHistory, VersionList
from worker.wire import introspection, training, versions
from worker.wire.discovery import encode_finding
from worker.wire.profile import encode_profile


def encode_answer(answer: AnyAnswer) -> dict[str, JsonValue]:
    """Write the answer to any request."""
    match answer:
        case Answer():
            return _encode_job(answer)
        case ModelList():
            return introspection.encode_models(answer)
        case ModelSchema():
            return dict(answer.document)
        case Inspection():
            return introspection.encode_inspection(answer)
        case PlanReport():
            return introspection.encode_plan(answer)
        case Discovery() | Updates() | GoldenComparison():
            return encode_finding(answer)
        case WorkerStatus():
            return introspection.encode_status(answer)
        case TimelineReport():
            return introspection.encode_timeline(answer)
        case Preloaded():
            return introspection.encode_preloaded(answer)
        case Unloaded():
            return introspection.encode_unloaded(answer)
        case Trained():
            return training.encode_trained(answer)
        case TrainingPlan():
            return training.encode_plan(answer)
        case TrainingState():
            return training.encode_state(answer)
        case VersionList() | VersionHistory() | ComparisonReport() | PairToJudge():
            return versions.encode_version_answer(answer)


def _encode_job(answer: Answer) -> dict[str, JsonValue]:
    return _without_files(answer) if answer.streamed else encode_whole(answer)


class Base64(str):
    """A text that was just made as base64: JSON has nothing in it to escape, so its writer need not look."""

    __slots__ = ()


def encode_file(file: AnswerFile) -> str:
    """Write a file of an answer: its URL or path, else its bytes as raw base64, without a data: prefix."""
    return file.url or file.path or Base64(pybase64.b64encode_as_string(file.data))


def encode_whole(answer: Answer) -> dict[str, JsonValue]:
    """Write a finished job with its files, in whatever way they are meant to leave."""
    return encode_generation(answer, [encode_file(file) for file in answer.files])


def _without_files(answer: Answer) -> dict[str, JsonValue]:
    """Write a finished job whose files are read from a stream: everything about it, and no file."""
    kind = "video" if answer.is_video else "image"
    body = encode_generation(answer, [""] * len(answer.files))
    return {f"{kind}s": []} | {name: value for name, value in body.items() if name not in (kind, f"{kind}s")}


def encode_generation(answer: Answer, files: Sequence[str]) -> dict[str, JsonValue]:
    """Write a finished job. `files` are the texts that stand for its files, in order: each stands in it once."""
    kind = "video" if answer.is_video else "image"
    body: dict[str, JsonValue] = {kind: files[0]} if len(files) == 1 else {f"{kind}s": [*files]}
    if answer.num_frames:
        body |= {"num_frames": answer.num_frames, "fps": answer.fps}
    body |= {
        "seed": answer.seeds[0],
        "seeds": [*answer.seeds],
        "model": answer.model,
        "revision": answer.revision,
        "task": answer.task.value,
        "prompt": answer.prompt,
        "width": answer.width,
        "height": answer.height,
        "num_inference_steps": answer.parameters.get("num_inference_steps"),
        "parameters": dict(answer.parameters),
        "format": answer.format,
        "loras": _loras(answer),
        "adapters": _adapters(answer),
        "safety": [{"flagged": item.flagged, "label": item.label, "score": item.score} for item in answer.safety],
        "timings": _timings(answer, answer.encode_s),
        "usage": _usage(answer),
        "reproduce": {
            "model": answer.reproduce.model,
            "loras": [*answer.reproduce.loras],
            "versions": dict(answer.reproduce.versions),
            "input": dict(answer.reproduce.input),
        },
        "quality": answer.quality,
        "levers": [*answer.levers],
        "warnings": [*answer.warnings],
    }
    if answer.weights is not None:
        body |= _weights(answer.weights)
    if answer.mask is not None:
        body["mask"] = answer.mask
    if answer.steps:
        body["steps"] = [_step(step) for step in answer.steps]
    if answer.version is not None:
        body |= {"version": answer.version, "arm": answer.arm}
    if answer.placement is not None:
        body["placement"] = _placement(answer.placement)
    if answer.profile is not None:
        body["profile"] = encode_profile(answer.profile)
    first = answer.files[0]
    if first.url is not None:
        body[f"{kind}_url"] = files[0]
    elif first.path is not None:
        body[f"{kind}_path"] = files[0]
    return body


def _weights(weights: Weights) -> dict[str, JsonValue]:
    body: dict[str, JsonValue] = {"precision": weights.precision}
    if weights.quantizer is not None:
        body["quantizer"] = weights.quantizer
    if weights.offload != "none":
        body["offload"] = weights.offload
    return body


def body_bytes(answer: Answer) -> int:
    """Return the size of `answer` as the platform receives it. Its files, which are ASCII, are counted unwritten."""
    body = encode_generation(answer, [""] * len(answer.files))
    encoded = json.dumps({"output": body}, ensure_ascii=False).encode("utf-8", "replace")
    sizes = [len(file.url or file.path or "") or (len(file.data) + 2) // 3 * 4 for file in answer.files]
    return len(encoded) + sum(sizes)


def encode_progress(progress: Progress, preview: str | None = None) -> dict[str, JsonValue]:
    """Write a progress update; `preview` is the base64 of a JPEG of its preview."""
    update: dict[str, JsonValue] = {
        "phase": progress.phase,
        "step": progress.step,
        "total": progress.total,
        "message": progress.message,
    }
    return update if preview is None else update | {"preview": preview}


def _loras(answer: Answer) -> list[JsonValue]:
    return [
        {
            "model": lora.model,
            "weight": lora.weight,
            "matched": lora.matched,
            "total": lora.total,
            "sha256": lora.sha256,
            "algorithm": lora.algorithm,
            "unmatched": [*lora.unmatched],
            "trigger_words": [*lora.trigger_words],
        }
        for lora in answer.loras
    ]


def _adapters(answer: Answer) -> list[JsonValue]:
    return [
        {
            "kind": item.kind.value,
            "model": item.model,
            "weight": item.weight,
            "sha256": item.sha256,
            "tokens": [*item.tokens],
        }
        for item in answer.adapters
    ]


def _placement(placement: Placement) -> dict[str, JsonValue]:
    return {
        "replica": placement.replica,
        "tier": placement.tier,
        "reason": placement.reason,
        "expected_s": round(placement.expected_s, 3),
        "expected_usd": round(placement.expected_usd, 8),
        "attempts": placement.attempts,
    }


def _step(step: StepReport) -> dict[str, JsonValue]:
    facts = step.facts
    return {
        "step": step.name,
        "model": facts.model,
        "revision": facts.revision,
        "task": facts.task.value,
        "seeds": [*step.seeds],
        "seconds": round(step.seconds, 4),
        "parameters": dict(facts.parameters),
        "timings": _timings(facts, 0.0),
        "usage": _usage(facts),
    }


def _timings(answer: JobFacts, encode_s: float) -> dict[str, JsonValue]:
    timings = answer.timings
    return {
        "queue_s": round(timings.queue_s, 4),
        "download_s": round(timings.download_s, 4),
        "load_s": round(timings.load_s, 4),
        "inference_s": round(timings.inference_s, 4),
        "encode_s": round(encode_s, 4),
        "batch_size": timings.batch_size,
    }


def _usage(answer: JobFacts) -> dict[str, JsonValue]:
    usage = answer.usage
    return {
        "gpu_seconds": round(usage.gpu_seconds, 4),
        "images": usage.images,
        "pixel_steps": usage.pixel_steps,
        "peak_memory_gb": round(usage.peak_memory_gb, 3),
        "bytes_downloaded": usage.bytes_downloaded,
        "cost_usd": None if usage.cost_usd is None else round(usage.cost_usd, 8),
    }
