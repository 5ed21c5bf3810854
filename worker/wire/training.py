"""Trainings as callers send them, and what comes of them as callers get it."""

import difflib
from collections.abc import Mapping

import pybase64
from pydantic import JsonValue, ValidationError

from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.training import (
    MAX_REPEATS,
    MAX_SENT,
    DatasetFacts,
    SentExample,
    Trained,
    TrainingAction,
    TrainingControl,
    TrainingData,
    TrainingMemory,
    TrainingOptions,
    TrainingPlan,
    TrainingRequest,
    TrainingState,
)
from worker.wire.texts import kind_of, shown, utf8
from worker.wire.validation import field_error

_OWN = ("model", "name", "data", "minutes", "max_usd", "candidate")
_OPTIONS = (*TrainingOptions.model_fields,)
FIELDS = (*_OWN, *_OPTIONS)
_OF_AN_EXAMPLE = {"image", "caption", "mask", "repeats", "source"}
_FORMS = (
    'a list of images, as [{"image": "https://…", "caption": "a cat"}]; a ZIP file as base64 or an https URL; '
    "hf:org/name, a public dataset of the Hub; or volume:NAME, a folder below the volume's datasets"
)


def training_fields(payload: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields of a training in a job's input, without those that are null or empty."""
    names = {"model_id": "model"}
    fields = {names.get(name, name): value for name, value in payload.items() if value is not None and value != ""}
    return {name: value for name, value in fields.items() if name not in ("action", "traceparent")}


def decode_training(action: TrainingAction, fields: Mapping[str, JsonValue]) -> TrainingRequest:
    """Make a request of a training's fields. Raises UnknownParameter, ParameterOutOfRange, InvalidRequest."""
    for name in fields:
        if name not in FIELDS:
            matches = difflib.get_close_matches(name[:80], FIELDS, n=1)
            fix = f"did you mean {matches[0]}?" if matches else f"it takes {', '.join(FIELDS)}."
            raise UnknownParameter(f"{utf8(name)[:80]} is not a field of this action; {fix}", field=name[:80])
    if "data" not in fields:
        raise ParameterOutOfRange(f"data is missing; send {_FORMS}.", field="data")
    options: dict[str, JsonValue] = {name: value for name, value in fields.items() if name in _OPTIONS}
    own = {name: value for name, value in fields.items() if name in _OWN and name != "data"}
    data = decode_data(fields["data"])
    try:
        read = TrainingOptions.model_validate(options)
        return TrainingRequest.model_validate({**own, "action": action, "data": data, "options": read})
    except ValidationError as error:
        raise field_error(error) from None


def decode_control(fields: Mapping[str, JsonValue]) -> TrainingControl:
    """Make a look at a training, or a wish for it, of its fields. Raises UnknownParameter, ParameterOutOfRange."""
    names = (*TrainingControl.model_fields,)
    for name in fields:
        if name not in names:
            raise UnknownParameter(
                f"{utf8(name)[:80]} is not a field of this action; it takes {', '.join(names)}.", field=name[:80]
            )
    try:
        return TrainingControl.model_validate(dict(fields))
    except ValidationError as error:
        raise field_error(error) from None


def decode_data(value: JsonValue) -> TrainingData:
    """Make images of what was sent as them. Raises InvalidRequest, ParameterOutOfRange."""
    if isinstance(value, list):
        if not 0 < len(value) <= MAX_SENT:
            raise ParameterOutOfRange(
                f"data holds {len(value):,} images; between 1 and {MAX_SENT:,} can be sent, and more in a ZIP file.",
                field="data",
            )
        return TrainingData(images=tuple(_example(item, index) for index, item in enumerate(value)))
    if not isinstance(value, str):
        raise InvalidRequest(f"data is {kind_of(value)}; send {_FORMS}.", field="data")
    text = value.strip()
    scheme, _, rest = text[:200].partition(":")
    match scheme.lower():
        case "hf":
            return TrainingData(dataset=rest.removeprefix("datasets/"))
        case "volume":
            return TrainingData(folder=rest)
        case _:
            return TrainingData(archive=text)


def _example(item: JsonValue, index: int) -> SentExample:
    entry: JsonValue = {"image": item} if isinstance(item, str) else item
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or entry.keys() - _OF_AN_EXAMPLE:
        raise InvalidRequest(
            f'data[{index}] must be an image or {{"image": "…", "caption": "…", "mask": "…", "source": "…", '
            f'"repeats": 1}}; {shown(entry)[:80]} was sent.',
            field="data",
        )
    try:
        return SentExample.model_validate(entry)
    except ValidationError:
        raise ParameterOutOfRange(
            f"data[{index}].caption must be a text of at most 2000 characters, its mask and its source images, and its "
            f"repeats a whole number between 1 and {MAX_REPEATS:,}.",
            field="data",
        ) from None


def encode_trained(answer: Trained) -> dict[str, JsonValue]:
    """Write what came of a training."""
    return {
        "name": answer.name,
        "model": answer.model,
        "use": {answer.field: answer.name if answer.field == "model" else [answer.name]},
        "version": answer.version,
        "trigger": answer.trigger,
        "done": answer.is_done,
        "steps": answer.steps,
        "of": answer.of,
        "delivered_step": answer.delivered,
        "resumed_at": answer.resumed_at,
        "loss": _number(answer.loss),
        "held_out_loss": _number(answer.held_out_loss),
        "dataset": _dataset(answer.dataset),
        "files": [{"path": file.path, "url": file.url} for file in answer.files],
        "usage": {
            "gpu_seconds": round(answer.gpu_seconds, 3),
            "cost_usd": None if answer.cost_usd is None else round(answer.cost_usd, 8),
        },
        "next": answer.next,
        "warnings": [*answer.warnings],
    }


def encode_plan(answer: TrainingPlan) -> dict[str, JsonValue]:
    """Write what a training would take."""
    return {
        "name": answer.name,
        "model": answer.model,
        "dataset": _dataset(answer.dataset),
        "sizes": [{"width": width, "height": height, "images": n} for (width, height), n in answer.sizes.items()],
        "times_each_image_is_seen": round(answer.rounds, 1),
        "licence": answer.licence,
        "defaults": {**answer.defaults},
        "warnings": [*answer.warnings],
        "fits": answer.fits,
        "reason": answer.reason,
        "memory": _memory(answer.memory),
        "expected_s": None if answer.seconds is None else round(answer.seconds, 3),
        "expected_from": answer.timed_by,
        "expected_usd": None if answer.usd is None else round(answer.usd, 6),
    }


def _memory(memory: TrainingMemory | None) -> JsonValue:
    if memory is None:
        return None
    parts = {"model": memory.model, "learnt": memory.learnt, "activations": memory.activations, "total": memory.total}
    return {f"{name}_gb": round(size / 1e9, 3) for name, size in parts.items()}


def encode_state(answer: TrainingState) -> dict[str, JsonValue]:
    """Write where a training stands; a sample is a PNG as base64."""
    return {
        "name": answer.name,
        "model": answer.model,
        "running": answer.is_running,
        "step": answer.step,
        "of": answer.of,
        "losses": [[step, _number(loss)] for step, loss in answer.losses],
        "samples": [
            {"step": sample.step, "prompt": sample.prompt, "image": pybase64.b64encode_as_string(sample.image)}
            for sample in answer.samples
        ],
    }


def _dataset(facts: DatasetFacts) -> dict[str, JsonValue]:
    return {
        "sha256": facts.digest,
        "images": facts.images,
        "images_with_repeats": facts.repeated,
        "captions": facts.captions,
        "masks": facts.masks,
        "sources": facts.sources,
        "smallest": facts.smallest,
        "largest": facts.largest,
        "faults": [*facts.faults],
    }


def _number(value: float | None) -> JsonValue:
    return None if value is None else round(value, 6)
