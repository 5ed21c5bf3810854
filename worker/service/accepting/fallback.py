"""Fallback to another model if one cannot be had: the failures that count, and the models that stand in."""

from dataclasses import dataclass

from worker.catalog.call import Model
from worker.catalog.interface.sizes import SizeBounds, size_bounds
from worker.core.errors import (
    AccessDenied,
    DiskFull,
    LoadFailed,
    ModelNotFound,
    OutOfMemory,
    SourceUnavailable,
    UnsupportedModel,
    WorkerError,
)
from worker.core.model import ModelSpec, Task
from worker.core.request import GenerationRequest
from worker.service.accepting.likeness import Nature, likeness
from worker.service.accepting.resolving import ModelResolver

# Failures of the model itself. A request that is wrong in itself stays wrong on another model.
_CANNOT_BE_HAD = (SourceUnavailable, AccessDenied, DiskFull, OutOfMemory, LoadFailed, UnsupportedModel, ModelNotFound)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The request for the model that stands in, and the warning that says so."""

    request: GenerationRequest
    warning: str


def replacements(request: GenerationRequest, error: WorkerError, resolver: ModelResolver) -> list[Replacement]:
    """List the requests to try after `error`, best first.

    These are for the model's registered fallback, or with `fallback: true` for similar models. The list is empty if no
    fallback was asked for, or the failure is not of the model. A replacement has no fallback itself: if none of them
    can be had either, the job ends with the first failure.
    """
    if not isinstance(error, _CANNOT_BE_HAD) or error.field not in (None, "model"):
        return []
    spec = _registered(request.model, resolver)
    if spec is not None and spec.fallback is not None:
        others = [resolver.registry.find(spec.fallback)]
    else:
        others = [*_similar(request, spec, resolver)] if request.fallback else []
    name = request.model or (spec.id if spec else "the default model")
    return [
        Replacement(
            request.model_copy(update={"model": other.id, "fallback": False}),
            f"{name} could not be had ({error.code}), so {other.id} drew this instead: {error.message}",
        )
        for other in others
        if other is not None
    ]


def _registered(model: str | None, resolver: ModelResolver) -> ModelSpec | None:
    try:
        return resolver.resolve(model)
    except WorkerError:
        return None


def _similar(request: GenerationRequest, spec: ModelSpec | None, resolver: ModelResolver) -> list[ModelSpec]:
    """List registered models of the same family that do the same task at the same size, the most alike first.

    A model of another family draws another image: of a family that is not known there is none. Of two that are equally
    alike the default model comes first.
    """
    if spec is None:
        return []
    nature = Nature.of(spec)
    model = Model.declared(spec)
    task = request.task or (Task.TEXT_TO_IMAGE if request.image is None else None)
    size = _size(request, size_bounds(model).native)
    others = [
        other
        for other in resolver.registry.models.values()
        if other.id != spec.id
        and likeness(nature, Nature.of(other)) > 0
        and (task is None or task in (Model.declared(other).tasks or (task,)))
        and _does(size_bounds(Model.declared(other)), *size)
    ]
    default = _registered(None, resolver)
    return sorted(others, key=lambda other: (-likeness(nature, Nature.of(other)), other is not default))


def _size(request: GenerationRequest, native: int) -> tuple[int, int]:
    """Return the size that is asked for; a side that is not given is the model's own."""
    width, height = (request.params.get(name) for name in ("width", "height"))
    return (width if isinstance(width, int) else native, height if isinstance(height, int) else native)


def _does(bounds: SizeBounds, width: int, height: int) -> bool:
    return max(width, height) <= bounds.maximum and width * height <= bounds.max_pixels
