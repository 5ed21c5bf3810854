"""What a worker tells of itself and of models, without drawing."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from worker.catalog.architectures import architecture
from worker.catalog.classes.refusals import refusal
from worker.catalog.detector import detect
from worker.catalog.interface.schema import model_schema
from worker.catalog.interface.sizes import size_bounds
from worker.catalog.interface.tasks import pipeline_for, tasks_of
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import WorkerError
from worker.core.job import StopSignal
from worker.core.model import Detection, ModelFiles, ModelSpec, Outline, Task
from worker.core.result import Emit, ignore_progress
from worker.service.accepting.resolving import ModelResolver
from worker.service.limits.admission import Load
from worker.service.limits.job_limits import JobLimits
from worker.service.local.engine_thread import EngineThread
from worker.service.local.provisioning import Provisioner
from worker.store.store import Store

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source is, before any weight is fetched."""

    spec: ModelSpec
    detection: Detection
    outline: Outline


class Introspection:
    """Answers about models and about this worker. Every answer is a JSON object."""

    def __init__(
        self,
        resolver: ModelResolver,
        store: Store,
        provisioner: Provisioner,
        engine: EngineThread,
        planner: Callable[[ModelSpec, ModelFiles, Detection, DeviceInfo, float], LoadPlan],
        limits: JobLimits,
        version: str,
        load: Callable[[], Load],
    ) -> None:
        self._resolver = resolver
        self._store = store
        self._provisioner = provisioner
        self._engine = engine
        self._planner = planner
        self._limits = limits
        self._version = version
        self._load = load

    def models(self) -> dict[str, JsonValue]:
        """The registry: every model's id, tasks and where it comes from."""
        return {"models": [_summary(spec) for spec in self._resolver.registry.models.values()]}

    def served_models(self) -> list[dict[str, JsonValue]]:
        """Those of the registry that this version can run."""
        return [entry for spec in self._resolver.registry.models.values() if (entry := _summary(spec))["served"]]

    def first_model_for(self, task: Task) -> str | None:
        """The id of the first model of the registry that serves `task`, as far as is known without its files."""
        for spec in self._resolver.registry.models.values():
            if task in tasks_of(spec, None) and _is_served(spec, None, task):
                return spec.id
        return None

    async def schema(self, model: str | None) -> dict[str, JsonValue]:
        """The JSON Schema (2020-12) of a request for `model`."""
        spec = self._resolver.resolve(model)
        detection = await asyncio.to_thread(self._resolver.detect, spec)
        served = tuple(task for task in tasks_of(spec, detection) if _is_served(spec, detection, task))
        return model_schema(
            # Only what a request would be accepted for; a model without any such task is described as it is.
            spec.model_copy(update={"tasks": served}) if served else spec,
            detection,
            max_images=self._limits.max_images,
            max_loras=self._limits.max_loras,
        )

    async def inspect(self, model: str | None) -> dict[str, JsonValue]:
        """What `model` is and how that is known; reads headers and JSON, never weights."""
        found = await asyncio.to_thread(self._inspect, model)
        detection = found.detection
        return {
            "model": found.spec.id,
            "source": _origin(found.spec),
            "revision": found.outline.revision,
            "kind": detection.kind.value,
            "confidence": detection.confidence,
            "format": detection.format,
            "quantization": detection.quantization,
            "parts": list(detection.parts),
            "architecture": detection.architecture,
            "variant": detection.variant,
            "pipeline": detection.pipeline,
            "tasks": [task.value for task in detection.tasks],
            "prediction_type": detection.prediction_type,
            "native_size": detection.native_size,
            "weight_bytes": found.outline.weight_bytes,
            "evidence": list(detection.evidence),
            "near": list(detection.near),
        }

    def _inspect(self, model: str | None) -> Inspection:
        spec = self._resolver.resolve(model)
        outline = self._store.peek(spec.source, spec.variant)
        return Inspection(spec, detect(outline), outline)

    async def plan(self, model: str | None, device: DeviceInfo | None = None) -> dict[str, JsonValue]:
        """What running `model` here would take: bytes, memory, dtype, offloading, or why it is refused."""
        spec = self._resolver.resolve(model)
        detection = await asyncio.to_thread(self._resolver.detect, spec)
        outline = await asyncio.to_thread(self._store.peek, spec.source, spec.variant)
        if device is None:
            device = await self._engine.call(lambda engine: engine.device_info(), "plan")
        bounds = size_bounds(spec, detection)
        row = architecture(detection.architecture) if detection.architecture else None
        answer: dict[str, JsonValue] = {
            "model": spec.id,
            "architecture": detection.architecture,
            "pipeline": detection.pipeline,
            "tasks": [task.value for task in tasks_of(spec, detection)],
            "revision": outline.revision,
            "weight_gb": round((outline.weight_bytes or 0) / GIB, 2),
            "native_size": bounds.native,
            "device": device.name,
            "free_gb": round(device.free_bytes / GIB, 2),
        }
        if not outline.weight_bytes:
            return answer | {"fits": None, "reason": "How large the weights are is not known before they are fetched."}
        files = ModelFiles(
            root=Path(spec.source.locator),
            total_bytes=outline.weight_bytes,
            revision=outline.revision,
            parameters={"model": outline.header.parameters} if outline.header else {},
        )
        try:
            if spec.source.scheme == "file":  # already here: its headers tell more than its size
                stop = StopSignal(self._limits.timeout_s)
                spec, files = await asyncio.to_thread(
                    self._provisioner.model_files, spec, detection, ignore_progress, stop
                )
            plan = self._planner(spec, files, detection, device, bounds.native**2 / 1e6)
        except WorkerError as error:
            return answer | {"fits": False, "reason": error.message}
        return answer | {
            "fits": True,
            "dtype": plan.dtype,
            "offload": plan.offload,
            "estimated_gb": round(plan.estimated_bytes / GIB, 2),
            "reasons": list(plan.reasons),
            "family": row.title if row else None,
        }

    def status(self) -> dict[str, JsonValue]:
        """Whether the worker is ready, what it runs and what is resident."""
        load = self._load()
        state = "lost" if self._engine.lost else "ready" if self._engine.ready else "starting"
        return {
            "status": state,
            "version": self._version,
            "running": self._engine.running,
            "jobs": {"running": load.running, "queued": load.queued},
            "resident_models": [*self._engine.resident_models],
            "tasks": [*sorted(task.value for task in Task)],
            "models": len(self._resolver.registry.models),
        }

    async def preload(self, model: str | None, emit: Emit, timeout_s: float | None = None) -> dict[str, JsonValue]:
        """Fetch `model` and put it on the device."""
        spec = self._resolver.resolve(model)
        detection = await asyncio.to_thread(self._resolver.detect, spec)
        stop = StopSignal(timeout_s or self._limits.timeout_s)
        spec, files = await asyncio.to_thread(self._provisioner.model_files, spec, detection, emit, stop)
        plan = await self._engine.call(
            lambda engine: engine.preload(spec, files, detection, emit), f"preload {spec.id}"
        )
        return {
            "model": spec.id,
            "resident": True,
            "dtype": plan.dtype,
            "device": plan.device,
            "offload": plan.offload,
            "weight_gb": round(plan.weight_bytes / GIB, 3),
        }

    async def unload(self, model: str | None) -> dict[str, JsonValue]:
        """Take `model` off the device."""
        spec = self._resolver.resolve(model)
        dropped = await self._engine.call(lambda engine: engine.unload(spec.id), f"unload {spec.id}")
        return {"model": spec.id, "unloaded": dropped > 0}


def _is_served(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    return refusal(pipeline_for(spec, detection, task) or "") is None


def _origin(spec: ModelSpec) -> str:
    """Where a model comes from; of a file not where it lies, which is the operator's business."""
    return spec.source.reference if spec.source.scheme == "hf" else spec.source.scheme


def _summary(spec: ModelSpec) -> dict[str, JsonValue]:
    tasks = tasks_of(spec, None)
    summary: Mapping[str, JsonValue] = {
        "id": spec.id,
        "aliases": list(spec.aliases),
        "description": spec.description,
        "architecture": spec.architecture,
        "tasks": [task.value for task in tasks],
        "served": any(_is_served(spec, None, task) for task in tasks) or not tasks,
        "source": _origin(spec),
        "tier": spec.tier,
        "min_vram_gb": spec.min_vram_gb,
    }
    return dict(summary)
