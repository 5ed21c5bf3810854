"""Fallback to another model if one cannot be had: the failures that count, and the models that stand in."""

from dataclasses import dataclass

from worker.catalog.architectures import architecture
from worker.catalog.call import Model
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
    """List registered models for the same task: the first of the same family, and the default model."""
    task = request.task or (Task.TEXT_TO_IMAGE if request.image is None else None)
    others = [
        other
        for other in resolver.registry.models.values()
        if (spec is None or other.id != spec.id) and (task is None or task in (Model(other).tasks or (task,)))
    ]
    base, default = _base(spec), _registered(None, resolver)
    siblings = [other for other in others if base is not None and _base(other) == base][:1]
    return [*siblings, *(other for other in others if other is default and other not in siblings)]


def _base(spec: ModelSpec | None) -> str | None:
    row = architecture(spec.architecture) if spec is not None and spec.architecture else None
    return row.adapter_base if row else None
