"""What is known of models without a device: the registry, the schemas of requests, what a source is."""

import asyncio

from worker.catalog.classes.refusals import refusal
from worker.catalog.detector import detect
from worker.catalog.interface.schema import model_schema
from worker.catalog.interface.tasks import pipeline_for, tasks_of
from worker.core.answer import Inspection, ModelList, ModelSchema, ModelSummary
from worker.core.model import Detection, ModelSpec, Task
from worker.service.accepting.resolving import ModelResolver
from worker.service.limits.job_limits import JobLimits
from worker.store.store import Store


class ModelIntrospection:
    """Answers about models. Nothing here needs a device, so that a gateway can have it too."""

    def __init__(self, resolver: ModelResolver, store: Store, limits: JobLimits) -> None:
        self._resolver = resolver
        self._store = store
        self._limits = limits

    def models(self) -> ModelList:
        """List the registry: every model's id, tasks and where it comes from."""
        return ModelList(tuple(_summary(spec) for spec in self._resolver.registry.models.values()))

    def served_models(self) -> tuple[ModelSummary, ...]:
        """List those of the registry that this version can run."""
        return tuple(model for model in self.models().models if model.served)

    def first_model_for(self, task: Task) -> str | None:
        """Name the first model of the registry that serves `task`, as far as is known without its files."""
        for spec in self._resolver.registry.models.values():
            if task in tasks_of(spec, None) and _is_served(spec, None, task):
                return spec.id
        return None

    async def schema(self, model: str | None) -> ModelSchema:
        """Describe a request for `model` as a JSON Schema (2020-12)."""
        spec = self._resolver.resolve(model)
        detection = await asyncio.to_thread(self._resolver.detect, spec)
        served = tuple(task for task in tasks_of(spec, detection) if _is_served(spec, detection, task))
        document = model_schema(
            # Only what a request would be accepted for; a model without any such task is described as it is.
            spec.model_copy(update={"tasks": served}) if served else spec,
            detection,
            max_images=self._limits.max_images,
            max_loras=self._limits.max_loras,
        )
        return ModelSchema(document)

    async def inspect(self, model: str | None) -> Inspection:
        """Tell what `model` is and how that is known; reads headers and JSON, never weights."""
        return await asyncio.to_thread(self._inspect, model)

    def _inspect(self, model: str | None) -> Inspection:
        spec = self._resolver.resolve(model)
        outline = self._store.peek(spec.source, spec.variant)
        return Inspection(spec.id, _origin(spec), detect(outline), outline)


def _is_served(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    return refusal(pipeline_for(spec, detection, task) or "") is None


def _origin(spec: ModelSpec) -> str:
    """Tell where a model comes from; of a file not where it lies, which is the operator's business."""
    return spec.source.reference if spec.source.scheme == "hf" else spec.source.scheme


def _summary(spec: ModelSpec) -> ModelSummary:
    tasks = tasks_of(spec, None)
    return ModelSummary(
        id=spec.id,
        aliases=tuple(spec.aliases),
        description=spec.description,
        architecture=spec.architecture,
        tasks=tuple(tasks),
        served=any(_is_served(spec, None, task) for task in tasks) or not tasks,
        source=_origin(spec),
        tier=spec.tier,
        min_vram_gb=spec.min_vram_gb,
    )
