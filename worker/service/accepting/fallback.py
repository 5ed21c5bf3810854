"""Another model in place of one that cannot be had: which failures count, and which model stands in."""

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

# The model cannot be had, whatever is asked of it. A request that is wrong in itself stays wrong on another model.
_CANNOT_BE_HAD = (SourceUnavailable, AccessDenied, DiskFull, OutOfMemory, LoadFailed, UnsupportedModel, ModelNotFound)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The request for the model that stands in, and the sentence that says so."""

    request: GenerationRequest
    warning: str


def replacements(request: GenerationRequest, error: WorkerError, resolver: ModelResolver) -> list[Replacement]:
    """What to try after `error`, best first: the model's registered fallback, or with `fallback: true` similar models.

    None when nothing was asked to stand in, or the failure is not of the model. A stand-in has no fallback itself: when
    none of them can be had either, the job ends with the first failure.
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
    """Registered models for the same task: the first of the same family, and the default model, which is at hand."""
    task = request.task or (Task.TEXT_TO_IMAGE if request.image is None else None)
    others = [
        other
        for other in resolver.registry.models.values()
        if (spec is None or other.id != spec.id) and (task is None or task in (Model(other).tasks or (task,)))
    ]
    base, default = _base(spec), _registered(None, resolver)
    kin = [other for other in others if base is not None and _base(other) == base][:1]
    return [*kin, *(other for other in others if other is default and other not in kin)]


def _base(spec: ModelSpec | None) -> str | None:
    row = architecture(spec.architecture) if spec is not None and spec.architecture else None
    return row.adapter_base if row else None
