"""Facts about models that need no device: the registry, the schemas of requests, what a source is."""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, Protocol

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.refusals import refusal
from worker.catalog.detector import detect
from worker.catalog.interface.schema import model_schema
from worker.catalog.recipes.recipe import Recipe
from worker.catalog.registry import Registry
from worker.core.answer import Inspection, ModelList, ModelSchema, ModelSummary
from worker.core.model import ModelSpec, Task
from worker.service.accepting.resolving import ModelResolver, offered_tasks
from worker.service.limits.job_limits import JobLimits
from worker.service.limits.pools import Pool
from worker.store.store import Store

FileKind = Literal["lora", "hypernet", "embedding"]


class AdapterFiles(Protocol):
    """The operator's folders of adapters."""

    def names(self, kind: str) -> tuple[str, ...]:
        """List the files of this kind by name."""
        ...

    def find(self, kind: str, name: str) -> str | None:
        """Return the reference of a file by its name, or None."""
        ...


class ModelIntrospection:
    """Answers about models. Nothing here needs a device, so that a gateway can have it too."""

    def __init__(
        self, resolver: ModelResolver, store: Store, limits: JobLimits, headers: Pool, files: AdapterFiles | None = None
    ) -> None:
        self._resolver = resolver
        self._store = store
        self._limits = limits
        self._headers = headers
        self._files = files

    def models(self) -> ModelList:
        """List the registry: every model's and recipe's id, tasks and where it comes from."""
        return listed(self._resolver.registry)

    async def adapters(self, kind: FileKind) -> tuple[str, ...]:
        """List the names of the operator's adapters of this kind: files in their folders, and LoRAs of models.yaml."""
        found = set(await self._headers.run(self._files.names, kind)) if self._files is not None else set()
        if kind == "lora":
            specs = self._resolver.registry.models.values()
            found |= {lora.name for spec in specs for lora in spec.loras if lora.name}
        return tuple(sorted(found))

    def adapter_file(self, kind: FileKind, name: str) -> str | None:
        """Return the reference of the operator's adapter of this name; None for one that is not there."""
        return self._resolver.adapter_named(name) or (self._files.find(kind, name) if self._files is not None else None)

    def default_model(self) -> str:
        """Return the id of the model of a request that names none."""
        return self._resolver.resolve(None).id

    def default_model_for(self, tasks: Collection[Task]) -> str | None:
        """Return the id of the default model if it serves one of `tasks`, judged without its files; else None."""
        spec = self._resolver.resolve(None)
        model = Model(spec)
        served = any(task in model.tasks and _is_served(model.call(task)) for task in tasks)
        return spec.id if served else None

    async def schema(self, model: str | None) -> ModelSchema:
        """Describe a request for `model` as a JSON Schema (2020-12)."""
        resolved = await self._headers.run(self._known, model, place=self._resolver.host_of(model))
        # Only tasks for which a request would be accepted; a model without any is described as it is.
        served = tuple(call.task for call in resolved.calls if _is_served(call))
        described = resolved.limited_to(served) if served else resolved
        limits = self._limits
        return ModelSchema(
            model_schema(
                described,
                max_images=limits.max_images,
                max_loras=limits.max_loras,
                takes_precision=limits.precisions,
            )
        )

    async def inspect(self, model: str | None) -> Inspection:
        """Detect what `model` is, with the evidence. Reads headers and JSON, never weights."""
        return await self._headers.run(self._inspect, model, place=self._resolver.host_of(model))

    def _known(self, model: str | None) -> Model:
        return self._resolver.known(self._resolver.resolve(model))

    def _inspect(self, model: str | None) -> Inspection:
        spec = self._resolver.resolve(model)
        outline = self._store.peek(spec.source, spec.variant)
        detection = detect(outline)
        if detection.tasks:  # by its class's name: the same as in a schema are those by what the class takes
            detection = replace(
                detection, tasks=offered_tasks(Model(ModelSpec(id=spec.id, source=spec.source), detection))
            )
        return Inspection(spec.id, _origin(spec), detection, outline)


def _is_served(call: ModelCall) -> bool:
    return refusal(call.pipeline) is None


def _origin(spec: ModelSpec) -> str:
    """Return where a model comes from. The path of a local file is left out: it is the operator's business."""
    return spec.source.reference if spec.source.is_repository else spec.source.scheme


def listed(registry: Registry) -> ModelList:
    """List a registry."""
    models = tuple(_summary(spec) for spec in registry.models.values())
    return ModelList((*models, *(_of_recipe(recipe, registry) for recipe in registry.recipes.values())))


def _of_recipe(recipe: Recipe, registry: Registry) -> ModelSummary:
    needs = [spec.min_vram_gb for name in recipe.models if (spec := registry.find(name)) and spec.min_vram_gb]
    return ModelSummary(
        id=recipe.id,
        aliases=(),
        description=recipe.description,
        architecture=None,
        tasks=(recipe.task,),
        served=True,
        source="recipe",
        tier=None,
        min_vram_gb=max(needs, default=None),
    )


def _summary(spec: ModelSpec) -> ModelSummary:
    calls = Model(spec).calls
    return ModelSummary(
        id=spec.id,
        aliases=tuple(spec.aliases),
        description=spec.description,
        architecture=spec.architecture,
        tasks=tuple(call.task for call in calls),
        served=any(map(_is_served, calls)) or not calls,
        source=_origin(spec),
        tier=spec.tier,
        min_vram_gb=spec.min_vram_gb,
    )
