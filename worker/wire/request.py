"""JSON to requests: aliases in, canonical names on."""

import difflib
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import JsonValue, ValidationError

from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.request_fields import common_fields, gather, request_fields
from worker.core.discovery import UpdatesRequest
from worker.core.errors import InvalidRequest, UnknownParameter, WorkerError
from worker.core.job_input import ACTIONS, Action, JobInput, ModelRequest, Request, WorkerRequest
from worker.core.model import Parsed
from worker.core.request import GenerationRequest
from worker.core.training import TrainingAction
from worker.wire.blanks import is_blank, without_blanks
from worker.wire.discovery import decode_golden, decode_wish
from worker.wire.foreign.translation import Translation, translate
from worker.wire.media_objects import unwrapped
from worker.wire.texts import kind_of, shown, utf8
from worker.wire.training import decode_control, decode_training, training_fields
from worker.wire.validation import check_json, field_error, with_plain_values
from worker.wire.versions import decode_versions

# A caller's spelling -> the canonical name. Nowhere else.
ALIASES: Mapping[str, str] = {
    "model_id": "model",
    "image_url": "image",
    "image_base64": "image",
    "init_image": "image",
    "mask": "mask_image",
    "video_url": "video",
    "video_base64": "video",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "num_images_per_prompt": "num_images",
    "n": "num_images",
    "num_outputs": "num_images",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "schedule_type": "schedule",
    "flow_shift": "shift",
    "upscaler": "upscale",
    # A list of adapters by the name of one of them: lora, controlnet …
    **{name.removesuffix("s"): name for name, kind in ADAPTERS.items() if kind.several},
}
TRAINING_ACTIONS = (*get_args(TrainingAction), "train_control")
_LONG = 10_000
_LISTS = ("images", "control_images", "video")  # one of them may be sent alone


@dataclass(frozen=True, slots=True)
class Envelope:
    """A job's input: its action, and the fields for it."""

    action: Action
    fields: Mapping[str, JsonValue]
    traceparent: JsonValue = None


def input_of(job: Mapping[str, Any]) -> Any:
    """Take the input out of a submitted job; RunPod's API has the caller's bucket beside it."""
    payload, bucket = job.get("input"), job.get("s3Config")
    if is_blank("s3Config", bucket) or not isinstance(payload, dict):
        return payload
    return payload if payload.get("s3Config") else {**payload, "s3Config": bucket}


def decode_input(payload: object, digest: str | None = None) -> JobInput:
    """Read a job's `input`, another worker's too. An error in it takes the place of the request; nothing is raised.

    `digest` is its fingerprint, if it needs none of its own.
    """
    action: Action | Literal["unknown"] = "unknown"
    model: object = None
    traceparent: object = None
    request: Request | WorkerError
    notes: tuple[str, ...] = ()
    digest = digest or fingerprint(payload)
    try:
        if (translation := _translated(payload)) is not None:
            payload, notes = translation.fields, translation.notes
        envelope = decode_envelope(payload)
        action, model, traceparent = envelope.action, envelope.fields.get("model"), envelope.traceparent
        request = _decode_request(envelope.action, envelope.fields)
    except WorkerError as error:
        request = error
    return JobInput(request, digest, action, model, traceparent, notes)


def _translated(payload: object) -> Translation | None:
    if not isinstance(payload, dict):
        return None
    check_json(payload)
    return translate(payload)


def fingerprint(payload: object) -> str:
    """Digest a payload: the same for the same JSON, whatever the order of its keys. Anything else is only itself."""
    try:
        text = json.dumps(_digested(payload), sort_keys=True)  # as ASCII: no text is too broken to be told apart
    except (TypeError, ValueError, RecursionError):
        return uuid.uuid4().hex
    return hashlib.sha256(text.encode()).hexdigest()


def _digested(value: object) -> object:
    """Return `value` with digests in the place of its long texts: to write megabytes as JSON takes milliseconds."""
    if isinstance(value, dict):
        return {key: _digested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_digested(item) for item in value]
    if isinstance(value, str) and len(value) >= _LONG:
        return ["digest", hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()]
    return value


def _decode_request(action: Action, fields: Mapping[str, JsonValue]) -> Request:
    match action:
        case "generate":
            return decode_generation(fields)
        case "models" | "status" | "timeline":
            decode_nothing(fields)
            return WorkerRequest(action)
        case "discover":
            return decode_wish(fields)
        case "updates":
            return UpdatesRequest(decode_model(fields))
        case "golden":
            return decode_golden(fields)
        case "train" | "train_plan":
            return decode_training(action, fields)
        case "train_control":
            return decode_control(fields)
        case "versions" | "history" | "report" | "promote" | "rollback" | "split" | "pairs" | "choose":
            return decode_versions(action, fields)
        case _:
            return ModelRequest(action, decode_model(fields))


def decode_envelope(payload: object) -> Envelope:
    """Take the action out of a job's `input`. Raises InvalidRequest for anything but a JSON object."""
    if not isinstance(payload, dict):
        raise InvalidRequest(f"input must be a JSON object; {kind_of(payload)} was sent.", field="input")
    check_json(payload)
    _check_wrapper(payload)
    fields = said(payload)
    action, traceparent = fields.pop("action", "generate"), fields.pop("traceparent", None)
    if not isinstance(action, str):
        raise InvalidRequest(f"action must be a text; {kind_of(action)} was sent.", field="action")
    if action not in ACTIONS:
        matches = difflib.get_close_matches(action[:40].lower(), ACTIONS, n=1)
        fix = f"did you mean {matches[0]}?" if matches else f"it is one of {', '.join(ACTIONS)}."
        raise InvalidRequest(f"action {shown(action)} is not known; {fix}", field="action")
    if (
        action in TRAINING_ACTIONS
    ):  # whose fields are their own: steps are not those of an image, and 0 of them a mistake
        return Envelope(action, training_fields(payload), traceparent)
    return Envelope(action, _canonical(fields), traceparent)


def said(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields that say something, by the names that were sent, without what says nothing in them.

    The objects in which other protocols send images are replaced by the texts in them.
    """
    values = {name: _said(ALIASES.get(name, name), value) for name, value in fields.items()}
    return {name: value for name, value in values.items() if value is not None}


def _said(name: str, value: JsonValue) -> JsonValue:
    return without_blanks(name, unwrapped(name, value))


def _check_wrapper(payload: Mapping[str, JsonValue]) -> None:
    """Refuse the whole body of a job where its input is expected: clients that wrap it wrap it once too often."""
    if isinstance(payload.get("input"), dict):
        text = 'input holds another input: that is one wrapper too many; send {"input": {"prompt": …}}.'
        raise InvalidRequest(text, field="input")


def decode_generation(fields: Mapping[str, JsonValue]) -> GenerationRequest:
    """Make a request of canonical fields. Fields that only a model's schema knows are left for it in `params`."""
    common_names = common_fields()
    common = {name: _whole(value) for name, value in fields.items() if name in common_names}
    params = {name: value for name, value in fields.items() if name not in common_names}
    for name, kind in ADAPTERS.items():
        if kind.several and (adapters := common.get(name)) is not None:
            common[name] = adapters if isinstance(adapters, list) else [adapters]
    _sort_media(common)
    request = gather(_parsed({**common, "params": params}))
    output = request.output
    if request.s3Config is not None and "delivery" not in output.model_fields_set:  # why else would it be sent
        return request.model_copy(update={"output": output.model_copy(update={"delivery": "s3"})})
    return request


def _parsed(fields: dict[str, JsonValue]) -> Parsed:
    """Read the fields strictly, and once more with the numbers and truth values that came as texts."""
    try:
        return request_fields().model_validate(fields)
    except ValidationError as error:
        refusal = error
    try:
        return request_fields().model_validate(with_plain_values(fields, refusal))
    except ValidationError as error:
        raise field_error(error) from None


def _sort_media(common: dict[str, JsonValue]) -> None:
    """Sort several images into `images` and one into `image`, however sent; make lists flat, and one text a list."""
    if isinstance(common.get("image"), list) and (several := _flat(common["image"])):
        del common["image"]
        common |= {"image": several[0]} if len(several) == 1 else {"images": [*several, *_flat(common.get("images"))]}
    if isinstance(common.get("images"), list):
        common["images"] = _flat(common["images"])
    for name in _LISTS:
        if isinstance(common.get(name), str):
            common[name] = [common[name]]


def decode_model(fields: Mapping[str, JsonValue]) -> str | None:
    """Take the model of an action that takes nothing else. Raises UnknownParameter for any other field."""
    for name in fields:
        if name != "model":
            text = f"{utf8(name)[:80]} is not a field of this action; it takes model."
            raise UnknownParameter(text, field=name[:80])
    return decode_generation(fields).model


def decode_nothing(fields: Mapping[str, JsonValue]) -> None:
    """Refuse every field, for an action that takes none. Raises UnknownParameter."""
    for name in fields:
        text = f"{utf8(name)[:80]} is not a field of this action; it takes none, leave it out."
        raise UnknownParameter(text, field=name[:80])


def _canonical(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    canonical_fields: dict[str, JsonValue] = {}
    spellings: dict[str, str] = {}
    for name, value in fields.items():
        canonical = ALIASES.get(name, name)
        if canonical in canonical_fields:
            raise InvalidRequest(f"{spellings[canonical]} and {name} mean the same; send one of them.", field=name)
        canonical_fields[canonical], spellings[canonical] = value, name
    return canonical_fields


def _whole(value: JsonValue) -> JsonValue:
    """Turn 2.0 into 2, also in lists and objects: JSON has one kind of number, and some clients write it with a dot."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(value: JsonValue) -> list[JsonValue]:
    """Return the images of a list, or of lists in it, as some pipelines have them; none if nothing was sent."""
    if isinstance(value, list):
        return [image for item in value for image in _flat(item)]
    return [] if value is None else [value]
