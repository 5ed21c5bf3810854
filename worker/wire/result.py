"""Answers and progress as callers get them."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.request import FRAME_FORMATS
from worker.core.result import JobResult, Progress


def encode_result(result: JobResult, files: list[str], format_: str, encode_s: float) -> dict[str, JsonValue]:
    """A result as a caller gets it. `files`: base64 or URLs of pictures, of a video's frames, or of videos."""
    first = result.artifacts[0]
    timings = result.timings
    shown: dict[str, JsonValue] = {"image": files[0], "images": [*files]}
    if first.is_video:
        shown = shown if format_ in FRAME_FORMATS else {"video": files[0], "videos": [*files]}
        shown |= {"num_frames": len(first.frames), "fps": first.fps}
    return {
        **shown,
        "seed": first.seed,
        "seeds": [item.seed for item in result.artifacts],
        "model": result.model,
        "revision": result.revision,
        "task": result.task.value,
        "prompt": result.prompt,
        "width": first.raster.width,
        "height": first.raster.height,
        "num_inference_steps": result.parameters.get("num_inference_steps"),
        "parameters": dict(result.parameters),
        "format": format_,
        "loras": [
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
            for lora in result.loras
        ],
        "adapters": [
            {
                "kind": item.kind.value,
                "model": item.model,
                "weight": item.weight,
                "sha256": item.sha256,
                "tokens": [*item.tokens],
            }
            for item in result.adapters
        ],
        "safety": [{"flagged": item.flagged, "label": item.label, "score": item.score} for item in result.safety],
        "timings": {
            "queue_s": round(timings.queue_s, 4),
            "download_s": round(timings.download_s, 4),
            "load_s": round(timings.load_s, 4),
            "inference_s": round(timings.inference_s, 4),
            "encode_s": round(encode_s, 4),
            "batch_size": timings.batch_size,
        },
        "usage": {
            "gpu_seconds": round(result.usage.gpu_seconds, 4),
            "images": result.usage.images,
            "pixel_steps": result.usage.pixel_steps,
            "peak_memory_gb": round(result.usage.peak_memory_gb, 3),
            "bytes_downloaded": result.usage.bytes_downloaded,
            "cost_usd": None if (cost := result.usage.cost_usd) is None else round(cost, 8),
        },
        "reproduce": {
            "model": result.reproduce.model,
            "loras": [*result.reproduce.loras],
            "versions": dict(result.reproduce.versions),
            "input": dict(result.reproduce.input),
        },
        "warnings": [*result.warnings],
    }


def encode_seconds(answer: Mapping[str, JsonValue]) -> float:
    """What the pictures of an answer of `encode_result` took to encode."""
    timings = answer["timings"]
    seconds = timings["encode_s"] if isinstance(timings, dict) else 0.0
    return seconds if isinstance(seconds, float) else 0.0


def encode_progress(progress: Progress, preview: str | None = None) -> dict[str, JsonValue]:
    """Write a progress update; `preview` is the base64 of a JPEG of its preview."""
    update: dict[str, JsonValue] = {
        "phase": progress.phase,
        "step": progress.step,
        "total": progress.total,
        "message": progress.message,
    }
    return update if preview is None else update | {"preview": preview}
