"""The plan by which a model fits a device: a pure function of numbers, without torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadFormat, LoadPlan, MemoryWays, Offload
from worker.core.errors import OutOfMemory
from worker.core.model import Detection, DType, Kind, ModelFiles, ModelSpec

_BYTES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# CUDA context, allocator fragmentation and library workspaces.
_OVERHEAD_BYTES = 768 * 2**20
GIB = 2**30
# The table's hungriest family, AnimateDiff, takes three to four times the memory of its weights for a megapixel.
_WEIGHTS_PER_MEGAPIXEL = 6.0


def target_dtype(spec: ModelSpec, device: DeviceInfo) -> DType:
    """Return the dtype to load with. A CPU computes in float32: bfloat16 is slower there, and float16 far slower."""
    if device.type == "cpu":
        return "float32"
    if device.type == "mps" and spec.dtype == "bfloat16":
        return "float16"
    return spec.dtype or "bfloat16"


def make_plan(
    model: KnownModel,
    files: ModelFiles,
    device: DeviceInfo,
    *,
    megapixels: float,
    beside_bytes: int = 0,
) -> LoadPlan:
    """Decide dtype and offloading. Raises OutOfMemory, with numbers, when nothing can make it fit.

    Without per-component counts (`files.parameters`) the stored bytes stand for the weights, taken as half precision.
    `beside_bytes` are those of ControlNets, which are on the device even where the model is offloaded.
    """
    spec, detection = model.spec, model.detection
    _check_memory(spec, device)
    sizes = _sizes(model, files, device, megapixels, beside_bytes)
    needs = _ways(sizes, detection, device)
    scheduler, options = _schedule(model, files)
    for offload, needed in needs:
        if needed <= device.free_bytes:
            reason = f"{needed / GIB:.1f} GiB needed, {device.free_bytes / GIB:.1f} GiB free on {device.name}"
            return LoadPlan(
                root=files.root,
                pipeline=detection.pipeline or "DiffusionPipeline",
                dtype=target_dtype(spec, device),
                device=device.type,
                offload=offload,
                estimated_bytes=needed,
                weight_bytes=sizes.weights,
                working_bytes_per_mp=int(sizes.bytes_per_mp),
                reserve_bytes=needed - sizes.working - (sizes.weights if offload == "none" else 0),
                format=_format(files, detection),
                variant=files.variant,
                config=files.config or (Path(spec.config) if spec.config else None),
                base=files.base,
                parts=files.parts,
                scheduler=scheduler,
                scheduler_options=options,
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


def memory_ways(
    model: KnownModel, files: ModelFiles, device: DeviceInfo, *, megapixels: float, beside_bytes: int = 0
) -> MemoryWays:
    """Return the ways to load `model` on a device of this type, the fastest first, with the bytes that each needs.

    How much memory the device has does not count. The rest is as in `make_plan`.
    """
    return tuple(_ways(_sizes(model, files, device, megapixels, beside_bytes), model.detection, device))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes on the device: all weights, those of the largest component, and what beside them is used."""

    weights: int
    largest: int
    bytes_per_mp: float
    working: int
    overhead: int


def _sizes(model: KnownModel, files: ModelFiles, device: DeviceInfo, megapixels: float, beside_bytes: int) -> _Sizes:
    dtype = target_dtype(model.spec, device)
    components = _component_bytes(files, dtype)
    # Uncounted weights are taken as stored in half precision, which doubles where the device computes in float32.
    weights = sum(components.values()) or files.total_bytes * _BYTES[dtype] // 2
    scale = _BYTES[dtype] / 2
    # The family's figure is of its full size: a small model of the same class has small activations too.
    bytes_per_mp = min(model.detection.activation_gb_per_mp * scale * GIB, weights * _WEIGHTS_PER_MEGAPIXEL)
    overhead = 0 if device.type == "cpu" else _OVERHEAD_BYTES
    return _Sizes(
        weights=weights,
        largest=max(components.values(), default=weights),
        bytes_per_mp=bytes_per_mp,
        working=int(bytes_per_mp * megapixels),
        overhead=overhead + beside_bytes * _BYTES[dtype] // 2,
    )


def _ways(sizes: _Sizes, detection: Detection, device: DeviceInfo) -> list[tuple[Offload, int]]:
    beside = sizes.working + sizes.overhead
    ways: list[tuple[Offload, int]] = [("none", sizes.weights + beside)]
    if device.type == "cuda" and _can_be_offloaded(detection):
        ways += [("model", sizes.largest + beside), ("sequential", beside)]
    return ways


def _component_bytes(files: ModelFiles, dtype: DType) -> dict[str, int]:
    """Return each component's bytes on the device: of a packed one its plain weights too."""
    return {
        name: files.parameters.get(name, 0) * _BYTES[dtype] + files.packed.get(name, 0)
        for name in files.parameters.keys() | files.packed.keys()
    }


def _can_be_offloaded(detection: Detection) -> bool:
    """False for an upscaler, which is one small network."""
    return detection.kind is not Kind.UPSCALER


def _check_memory(spec: ModelSpec, device: DeviceInfo) -> None:
    """Raise OutOfMemory for a GPU that is smaller than the registry asks for."""
    if device.type == "cuda" and spec.min_vram_gb is not None and device.total_bytes < spec.min_vram_gb * GIB * 0.95:
        raise OutOfMemory(
            f"{spec.id} needs a GPU with {spec.min_vram_gb:g} GB (min_vram_gb in models.yaml) and {device.name} has "
            f"{device.total_bytes / GIB:.0f} GiB; run it on a larger one.",
            field="model",
        )


def images_that_fit(plan: LoadPlan, device: DeviceInfo, megapixels: float) -> int:
    """Return the number of images of this size that one call may generate in the memory free now; at least 1.

    The model is loaded already. A CPU has no such bound: it lacks time, and whether memory is short shows by trying.
    """
    if device.type == "cpu":
        return sys.maxsize
    bytes_per_image = max(1.0, plan.working_bytes_per_mp * megapixels)
    return max(1, int((device.free_bytes - plan.reserve_bytes) / bytes_per_image))


def resident_key(spec: ModelSpec, files: ModelFiles) -> str:
    """Return a key that is the same for the same load: the files, the sources of parts, and the options of loading."""
    parts = [f"{name}={path}" for name, path in sorted(files.parts.items())]
    values = (
        files.root,
        spec.dtype,
        files.variant,
        files.config or spec.config,
        files.base,
        spec.pipeline,
        spec.prediction_type,
        *parts,
    )
    return "|".join(str(value or "") for value in values)


def _format(files: ModelFiles, detection: Detection) -> LoadFormat:
    if detection.kind is Kind.UPSCALER:
        return "upscaler"
    if not files.is_single_file:
        return "modular" if detection.format == "modular" else "diffusers"
    return "gguf" if files.root.suffix.lower() == ".gguf" else "safetensors"


# The schedulers of files trained in EDM's terms: Playground 2.5, and CosXL, which predicts velocities.
_EDM: Mapping[str, tuple[str, Mapping[str, JsonValue]]] = {
    "edm": ("EDMDPMSolverMultistepScheduler", {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}),
    "edm_v_prediction": (
        "EDMEulerScheduler",
        {"sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0, "prediction_type": "v_prediction"},
    ),
}


def _schedule(model: KnownModel, files: ModelFiles) -> tuple[str | None, Mapping[str, JsonValue]]:
    """Return the scheduler class, where the config's own is wrong, and the options laid over its config.

    A single file says it in marker tensors or metadata; a repository has a config, which only the registry overrules.
    """
    spec, detection = model.spec, model.detection
    if not files.is_single_file:
        return None, {"prediction_type": spec.prediction_type} if spec.prediction_type else {}
    edm = _EDM.get(detection.prediction_type or "")
    if edm is not None:
        return edm
    few_steps = detection.few_steps
    scheduler, options = (few_steps.cls, dict(few_steps.options)) if few_steps else (None, {})
    if detection.prediction_type is not None:
        options["prediction_type"] = detection.prediction_type
    if detection.zero_snr:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler, options
