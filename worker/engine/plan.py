"""How a model fits a device: a pure function of numbers, without torch."""

from pathlib import Path

from pydantic import JsonValue

from worker.core.device import DeviceInfo, LoadPlan, Offload
from worker.core.errors import OutOfMemory
from worker.core.model import Detection, DType, ModelFiles, ModelSpec

_BYTES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# CUDA context, allocator fragmentation and library workspaces.
_OVERHEAD_BYTES = 768 * 2**20
GIB = 2**30


def target_dtype(spec: ModelSpec, device: DeviceInfo) -> DType:
    """The dtype to load with. A CPU computes in float32: half precision there is slower, and float16 far slower."""
    if device.type == "cpu":
        return "float32"
    if device.type == "mps" and spec.dtype == "bfloat16":
        return "float16"
    return spec.dtype or "bfloat16"


def make_plan(
    spec: ModelSpec,
    files: ModelFiles,
    detection: Detection,
    device: DeviceInfo,
    *,
    megapixels: float,
) -> LoadPlan:
    """Decide dtype and offloading. Raises OutOfMemory, with numbers, when nothing can make it fit.

    Without per-component counts (`files.parameters`) the stored bytes stand for the weights.
    """
    if device.type == "cuda" and spec.min_vram_gb is not None and device.total_bytes < spec.min_vram_gb * GIB * 0.95:
        raise OutOfMemory(
            f"{spec.id} needs a GPU with {spec.min_vram_gb:g} GB (min_vram_gb in models.yaml) and {device.name} has "
            f"{device.total_bytes / GIB:.0f} GiB; run it on a larger one.",
            field="model",
        )
    dtype = target_dtype(spec, device)
    components = {name: count * _BYTES[dtype] for name, count in files.parameters.items()}
    weights = sum(components.values()) or files.total_bytes
    largest = max(components.values(), default=weights)
    scale = _BYTES[dtype] / 2
    working = int(detection.activation_gb_per_mp * scale * megapixels * GIB)
    overhead = 0 if device.type == "cpu" else _OVERHEAD_BYTES
    needs: list[tuple[Offload, int]] = [("none", weights + working + overhead)]
    if device.type == "cuda":
        needs += [("model", largest + working + overhead), ("sequential", working + overhead)]
    for offload, needed in needs:
        if needed <= device.free_bytes:
            reason = f"{needed / GIB:.1f} GiB needed, {device.free_bytes / GIB:.1f} GiB free on {device.name}"
            return LoadPlan(
                root=files.root,
                pipeline=detection.pipeline or "DiffusionPipeline",
                dtype=dtype,
                device=device.type,
                offload=offload,
                estimated_bytes=needed,
                weight_bytes=weights,
                variant=files.variant,
                config=Path(spec.config) if spec.config else None,
                scheduler_options=_scheduler_options(files, detection),
                reasons=(reason,)
                if offload == "none"
                else (reason, f"{offload} offloading, since all at once is too large"),
            )
    raise OutOfMemory(
        f"{spec.id} needs {needs[-1][1] / GIB:.1f} GiB at {megapixels:.2f} megapixels and {device.name} has "
        f"{device.free_bytes / GIB:.1f} GiB free; use a larger device, a smaller size or a quantized model.",
        field="model",
        details={"needed_gb": round(needs[-1][1] / GIB, 2), "free_gb": round(device.free_bytes / GIB, 2)},
    )


def _scheduler_options(files: ModelFiles, detection: Detection) -> dict[str, JsonValue]:
    """What a single file says of its noise schedule; a repository has a scheduler config of its own."""
    if not files.is_single_file:
        return {}
    options: dict[str, JsonValue] = {}
    if detection.prediction_type is not None:
        options["prediction_type"] = detection.prediction_type
    if detection.zero_snr:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return options
