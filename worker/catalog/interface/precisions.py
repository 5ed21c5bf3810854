"""The precisions that a model can be held in: all of them, but for what its files and its pipeline class cannot."""

from dataclasses import replace

from worker.catalog.call import Model
from worker.catalog.capabilities import STORAGES, storage_of
from worker.catalog.pipelines.table import pipeline_row
from worker.core.errors import UnsupportedModel
from worker.core.model import Kind
from worker.core.precision import DTYPES, PRECISIONS, WAYS, DType, Precision

# Storages that are made plain as they are read, so that nothing of them is left in memory.
_MADE_PLAIN = frozenset({"fp8", "fp8-scaled"})


def precisions(model: Model) -> tuple[Precision, ...]:
    """Return the precisions that requests of this model may name."""
    offered = PRECISIONS if obstacle(model) is None else ("auto", *DTYPES)
    taken = dtypes(model)
    return tuple(each for each in offered if each not in DTYPES or DTYPES[each] in taken)


def dtypes(model: Model) -> tuple[DType, ...]:
    """Return the dtypes that the model can be computed in: those that all classes of its tasks take."""
    own, *others = (pipeline_row(name).dtypes for name in _classes(model))
    return tuple(each for each in own if all(each in other for other in others))


def _classes(model: Model) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys((model.pipeline, *map(model.pipeline_for, model.tasks))))


def obstacle(model: Model) -> str | None:
    """Return what keeps a model's weights from being made smaller; None where nothing does."""
    if model.detection.kind is Kind.UPSCALER:
        return "is an upscaler, one small network"
    if pipeline_row(model.pipeline).convolutional:
        return "is an upsampler of latents, whose networks are convolutions alone"
    storage = storage_of(model.detection)
    if storage is None or storage in _MADE_PLAIN:
        return None
    return f"is stored as {STORAGES[storage].title if storage in STORAGES else storage} and stays so"


def settled(model: Model, default: Precision | None) -> Model:
    """Return the model in its precision: as asked for or as models.yaml says, else the worker's where it can be had.

    Raises UnsupportedModel if it cannot be had in the one that is asked for.
    """
    model = _in_a_dtype_it_takes(model)
    asked, reason = model.spec.precision, obstacle(model)
    if asked is not None:
        taken = dtypes(model)
        if asked in DTYPES and DTYPES[asked] not in taken:
            others = " or ".join(each for each, dtype in DTYPES.items() if dtype in taken)
            limited = next(name for name in _classes(model) if DTYPES[asked] not in pipeline_row(name).dtypes)
            raise UnsupportedModel(
                f"precision {asked}: {model.spec.id} runs as {limited}, which cannot compute in {DTYPES[asked]}; send "
                f"{others}, or leave precision out.",
                field="precision",
            )
        if asked in WAYS and reason is not None:
            raise UnsupportedModel(
                f"precision {asked}: {model.spec.id} {reason}; leave precision out, or name a repository or file of "
                "its plain weights.",
                field="precision",
            )
        return model
    if default is None or default not in precisions(model):
        return model
    return replace(model, spec=model.spec.model_copy(update={"precision": default}))


def for_training(model: Model, precision: Precision | None) -> Model:
    """Return the model as a training holds it, however it is served: on one device, whole or in this precision.

    Raises UnsupportedModel if it cannot be had in that.
    """
    dtype = DTYPES.get(model.spec.precision or "auto") or model.spec.dtype
    held = {"dtype": dtype, "precision": precision, "device_map": None, "context_parallel": None}
    return settled(replace(model, spec=model.spec.model_copy(update=held)), None)


def _in_a_dtype_it_takes(model: Model) -> Model:
    """Return the model in another dtype where its class cannot compute in its own, or in the usual one: bfloat16."""
    taken = dtypes(model)
    if (model.spec.dtype or "bfloat16") in taken:
        return model
    return replace(model, spec=model.spec.model_copy(update={"dtype": taken[0]}))
