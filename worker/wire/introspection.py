"""Facts about models and a worker, as callers get them."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, JsonValue

from worker.core.answer import (
    Inspection,
    JobTimeline,
    ModelList,
    ModelSummary,
    PlanReport,
    Preloaded,
    StepPlan,
    TierOutlook,
    TimelineReport,
    Unloaded,
    WorkerStatus,
)
from worker.core.device import LoadPlan
from worker.core.model import Task
from worker.core.precision import DType, Offload, Precision, Quantizer
from worker.core.quality import LeverReport

_GIB = 2**30


def encode_models(answer: ModelList) -> dict[str, JsonValue]:
    """Write the registry."""
    return {"models": [encode_model(model) for model in answer.models]}


def encode_model(model: ModelSummary) -> dict[str, JsonValue]:
    """Write one model of the registry."""
    entry: Mapping[str, JsonValue] = {
        "id": model.id,
        "aliases": [*model.aliases],
        "description": model.description,
        "architecture": model.architecture,
        "tasks": [task.value for task in model.tasks],
        "served": model.served,
        "source": model.source,
        "tier": model.tier,
        "min_vram_gb": model.min_vram_gb,
    }
    return dict(entry)


def encode_inspection(answer: Inspection) -> dict[str, JsonValue]:
    """Write the detection of a source, with its evidence."""
    detection = answer.detection
    return {
        "model": answer.model,
        "source": answer.source,
        "revision": answer.outline.revision,
        "kind": detection.kind.value,
        "confidence": detection.confidence,
        "format": detection.format,
        "quantization": detection.quantization,
        "parts": [*detection.parts],
        "architecture": detection.architecture,
        "variant": detection.variant,
        "pipeline": detection.pipeline,
        "tasks": [task.value for task in detection.tasks],
        "prediction_type": detection.prediction_type,
        "native_size": detection.native_size,
        "weight_bytes": answer.outline.weight_bytes,
        "evidence": [*detection.evidence],
        "near": [*detection.near],
    }


def encode_plan(answer: PlanReport) -> dict[str, JsonValue]:
    """Write the plan of running a model."""
    report: dict[str, JsonValue] = {
        "model": answer.model,
        "architecture": answer.architecture,
        "pipeline": answer.pipeline,
        "tasks": [task.value for task in answer.tasks],
        "revision": answer.revision,
        "weight_gb": round(answer.weight_bytes / _GIB, 2),
        "native_size": answer.native_size,
        "device": answer.device,
        "free_gb": round(answer.free_bytes / _GIB, 2),
        "fits": answer.fits,
    }
    if answer.pace:
        report |= {
            "measured": {
                "jobs": answer.pace.jobs,
                "s_per_megapixel_step": round(answer.pace.seconds, 6),
                "usd_per_megapixel_step": None if answer.pace.usd is None else round(answer.pace.usd, 9),
            }
        }
    if answer.known:
        report |= {"known": [*answer.known]}
    if answer.tiers:
        report |= {"tiers": [_outlook(tier) for tier in answer.tiers]}
    if answer.steps:
        report |= {
            "pixel_steps": answer.pixel_steps,
            "expected_s": _rounded(answer.expected_s, 1),
            "expected_usd": _rounded(answer.expected_usd, 6),
            "steps": [_step(step) for step in answer.steps],
        }
    if answer.plan is None:
        return report | {"reason": answer.reason}
    return report | {
        "dtype": answer.plan.dtype,
        "precision": answer.plan.precision,
        **({"quantizer": answer.plan.quantizer} if answer.plan.quantizer else {}),
        "offload": answer.plan.offload,
        **_cards(answer.plan),
        "estimated_gb": round(answer.plan.estimated_bytes / _GIB, 2),
        "reasons": [*answer.plan.reasons],
        "family": answer.family,
        "precisions": {name: round(needed / _GIB, 2) for name, needed in answer.precisions.items()},
    }


def _cards(plan: LoadPlan) -> dict[str, JsonValue]:
    """Write over which GPUs a model is spread, and what each of them needs."""
    if not plan.cards:
        return {}
    needed = [round(size / _GIB, 2) for size in plan.card_bytes]
    return {"device_map": dict(sorted(plan.cards.items())), "gpu_gb": [*needed]}


def _step(step: StepPlan) -> dict[str, JsonValue]:
    return {
        "step": step.name,
        "pixel_steps": step.pixel_steps,
        "expected_s": _rounded(step.expected_s, 1),
        "expected_usd": _rounded(step.usd, 6),
        **encode_plan(step.report),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _outlook(tier: TierOutlook) -> dict[str, JsonValue]:
    return {
        "tier": tier.tier,
        "vram_gb": None if tier.vram_bytes is None else round(tier.vram_bytes / _GIB, 2),
        "fits": tier.fits,
        "chosen": tier.chosen,
        "offload": tier.offload,
        "model_is": tier.nearness,
        "moved_gb": None if tier.moved_bytes is None else round(tier.moved_bytes / _GIB, 2),
        "expected_s": None if tier.seconds is None else round(tier.seconds, 1),
        "expected_usd": None if tier.usd is None else round(tier.usd, 6),
        "reason": tier.reason,
    }


def encode_status(answer: WorkerStatus) -> dict[str, JsonValue]:
    """Write a worker's state: its readiness, its running and queued jobs, its resident models."""
    reason: dict[str, JsonValue] = {"reason": " ".join(answer.problems)} if answer.problems else {}
    return {
        "status": answer.status,
        **reason,
        "version": answer.version,
        "running": answer.running,
        "jobs": {"running": answer.jobs_running, "queued": answer.jobs_queued},
        "resident_models": [*answer.resident_models],
        "tasks": [*sorted(task.value for task in Task)],
        "models": answer.models,
        "levers": [_lever(lever) for lever in answer.levers],
        "alerts": [*answer.alerts],
    }


def encode_timeline(answer: TimelineReport) -> dict[str, JsonValue]:
    """Write where the seconds of a start and of the last jobs went."""
    before = [0.0, *(at for _, at in answer.start)]
    start: list[JsonValue] = [
        {"moment": name, "at_s": round(at, 3), "took_s": round(at - previous, 3)}
        for (name, at), previous in zip(answer.start, before, strict=False)
    ]
    return {"start": start, "jobs": [_job_timeline(job) for job in answer.jobs]}


def _job_timeline(job: JobTimeline) -> dict[str, JsonValue]:
    return {
        "id": job.id,
        "model": job.model,
        "outcome": job.outcome,
        "began": round(job.at, 3),
        "seconds": round(job.seconds, 4),
        "stages": [
            {"stage": name, "at_s": round(began, 4), "seconds": round(seconds, 4)}
            for name, began, seconds in job.stages
        ],
    }


def _lever(lever: LeverReport) -> dict[str, JsonValue]:
    return {
        "model": lever.model,
        "lever": lever.lever,
        "quality": lever.tier,
        "verdict": lever.verdict,
        "reason": lever.reason,
        "psnr_db": None if lever.psnr_db is None else round(lever.psnr_db, 1),
        "gain": None if lever.gain is None else round(lever.gain, 3),
    }


def encode_preloaded(answer: Preloaded) -> dict[str, JsonValue]:
    """Write the placement of a model on the device."""
    return {
        "model": answer.model,
        "resident": True,
        "dtype": answer.plan.dtype,
        "precision": answer.plan.precision,
        **({"quantizer": answer.plan.quantizer} if answer.plan.quantizer else {}),
        "device": answer.plan.device,
        "offload": answer.plan.offload,
        **_cards(answer.plan),
        "weight_gb": round(answer.plan.weight_bytes / _GIB, 3),
    }


def decode_preloaded(body: Mapping[str, JsonValue], replica: str) -> Preloaded:
    """Read what a worker says of a model that it put on its device. Raises ValueError."""
    told = _Placed.model_validate(body)
    size = round(told.weight_gb * _GIB)
    plan = LoadPlan(
        root=Path(),
        pipeline="",
        dtype=told.dtype,
        device=f"{told.device} of {replica}",
        offload=told.offload,
        estimated_bytes=size,
        weight_bytes=size,
        precision=told.precision,
        quantizer=told.quantizer,
        cards=told.device_map,
        card_bytes=tuple(round(gb * _GIB) for gb in told.gpu_gb),
    )
    return Preloaded(told.model, plan)


class _Placed(BaseModel):
    model: str
    dtype: DType
    precision: Precision
    quantizer: Quantizer | None = None
    device: str
    offload: Offload
    weight_gb: float
    device_map: dict[str, int] = {}
    gpu_gb: tuple[float, ...] = ()


def encode_unloaded(answer: Unloaded) -> dict[str, JsonValue]:
    """Write the removal of a model from the device."""
    return {"model": answer.model, "unloaded": answer.dropped}
