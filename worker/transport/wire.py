"""The JSON that every door shares (docs/api.md): aliases in, canonical names on; results and errors out."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import JsonValue, ValidationError

from worker.core.adapter import ADAPTER_SPECS
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter, WorkerError
from worker.core.finishing import RefinerSpec, UpscaleSpec
from worker.core.model import LoraSpec, Parsed
from worker.core.request import FRAME_FORMATS, GenerationRequest, Margins, OutputOptions, S3Config
from worker.core.result import JobResult, Progress
from worker.media.images import encode, to_base64

Action = Literal["generate", "models", "schema", "inspect", "plan", "status", "preload", "unload"]
ACTIONS: tuple[Action, ...] = get_args(Action)

# What callers may write -> the canonical name. Nowhere else.
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
    "lora": "loras",
    "controlnet": "controlnets",
    "ip_adapter": "ip_adapters",
    "embedding": "embeddings",
    "hypernetwork": "hypernetworks",
    "upscaler": "upscale",
}
_COMMON = frozenset(GenerationRequest.model_fields) - {"params"}
# The fields that hold objects with fields of their own.
_OBJECTS: Mapping[str, type[Parsed]] = {
    "loras": LoraSpec,
    "output": OutputOptions,
    "refiner": RefinerSpec,
    "upscale": UpscaleSpec,
    "outpaint": Margins,
    "s3Config": S3Config,
    **ADAPTER_SPECS,
}
_LISTS = ("images", "control_images", "video")  # one of them may be sent alone
PREVIEW_QUALITY = 80
_MAX_DEPTH = 16
_MAX_KEYS = 200
_MAX_PARTS = 10_000
_MAX_WHOLE = 2**64


@dataclass(frozen=True, slots=True)
class Envelope:
    """A job's input: what to do, and with what."""

    action: Action
    fields: Mapping[str, JsonValue]
    traceparent: JsonValue = None


def input_of(job: Mapping[str, Any]) -> Any:
    """The input of a job as it is handed in; RunPod's API has the caller's bucket beside it."""
    payload, bucket = job.get("input"), job.get("s3Config")
    return {"s3Config": bucket, **payload} if bucket is not None and isinstance(payload, dict) else payload


def decode_envelope(payload: object) -> Envelope:
    """Take the action out of a job's `input`. Raises InvalidRequest for what is no JSON object."""
    if not isinstance(payload, dict):
        raise InvalidRequest(f"input must be a JSON object; {_kind(payload)} was sent.", field="input")
    _check_json(payload)
    fields = dict(payload)
    action, traceparent = fields.pop("action", None), fields.pop("traceparent", None)
    if action is None:
        action = "generate"
    if not isinstance(action, str):
        raise InvalidRequest(f"action must be a text; {_kind(action)} was sent.", field="action")
    if action not in ACTIONS:
        near = difflib.get_close_matches(action[:40].lower(), ACTIONS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(ACTIONS)}."
        raise InvalidRequest(f"action {_shown(action)} is not known; {fix}", field="action")
    return Envelope(action, _canonical(fields), traceparent)


def decode_generation(fields: Mapping[str, JsonValue]) -> GenerationRequest:
    """Canonical fields to a request. What only a model's schema knows is left for it in `params`."""
    common = {name: _whole(value) for name, value in fields.items() if name in _COMMON and value is not None}
    params = {name: value for name, value in fields.items() if name not in _COMMON and value is not None}
    for name in ("loras", *ADAPTER_SPECS):
        if (sent := common.get(name)) is not None:
            common[name] = sent if isinstance(sent, list) else [sent]
    if common.get("image") == []:  # like an empty list of any field
        del common["image"]
    if isinstance(common.get("image"), list) and (several := _flat(common["image"])):
        del common["image"]
        common |= {"image": several[0]} if len(several) == 1 else {"images": [*several, *_flat(common.get("images"))]}
    if isinstance(common.get("images"), list):
        common["images"] = _flat(common["images"])
    for name in _LISTS:
        if isinstance(common.get(name), str):
            common[name] = [common[name]]
    try:
        request = GenerationRequest.model_validate({**common, "params": params})
    except ValidationError as error:
        raise _field_error(error) from None
    output = request.output
    if request.s3Config is not None and "delivery" not in output.model_fields_set:  # why else would it be sent
        return request.model_copy(update={"output": output.model_copy(update={"delivery": "s3"})})
    return request


def decode_model(fields: Mapping[str, JsonValue]) -> str | None:
    """The model of an action that takes nothing else. Raises UnknownParameter for any other field."""
    for name in fields:
        if name != "model":
            text = f"{_utf8(name)[:80]} is not a field of this action; it takes model."
            raise UnknownParameter(text, field=name[:80])
    return decode_generation(fields).model


def decode_nothing(fields: Mapping[str, JsonValue]) -> None:
    """Nothing, for an action that takes no field. Raises UnknownParameter for any."""
    for name in fields:
        text = f"{_utf8(name)[:80]} is not a field of this action; it takes none, leave it out."
        raise UnknownParameter(text, field=name[:80])


def encode_result(result: JobResult, files: list[str], format_: str, encode_s: float) -> dict[str, JsonValue]:
    """A result as a caller gets it. `files`: base64 or URLs of pictures, of a video's frames, or of videos."""
    first = result.artifacts[0]
    timings = result.timings
    shown: dict[str, JsonValue] = {"image": files[0], "images": [*files]}
    if first.is_video:
        shown = shown if format_ in FRAME_FORMATS else {"video": files[0], "videos": [*files]}
        shown |= {"num_frames": len(first.frames), "fps": first.fps}
    return {
        **shown,
        "seed": first.seed,
        "seeds": [item.seed for item in result.artifacts],
        "model": result.model,
        "revision": result.revision,
        "task": result.task.value,
        "prompt": result.prompt,
        "width": first.raster.width,
        "height": first.raster.height,
        "num_inference_steps": result.parameters.get("num_inference_steps"),
        "parameters": dict(result.parameters),
        "format": format_,
        "loras": [
            {
                "model": lora.model,
                "weight": lora.weight,
                "matched": lora.matched,
                "total": lora.total,
                "sha256": lora.sha256,
                "algorithm": lora.algorithm,
                "unmatched": [*lora.unmatched],
                "trigger_words": [*lora.trigger_words],
            }
            for lora in result.loras
        ],
        "adapters": [
            {
                "kind": item.kind.value,
                "model": item.model,
                "weight": item.weight,
                "sha256": item.sha256,
                "tokens": [*item.tokens],
            }
            for item in result.adapters
        ],
        "safety": [{"flagged": item.flagged, "label": item.label, "score": item.score} for item in result.safety],
        "timings": {
            "queue_s": round(timings.queue_s, 4),
            "download_s": round(timings.download_s, 4),
            "load_s": round(timings.load_s, 4),
            "inference_s": round(timings.inference_s, 4),
            "encode_s": round(encode_s, 4),
            "batch_size": timings.batch_size,
        },
        "usage": {
            "gpu_seconds": round(result.usage.gpu_seconds, 4),
            "images": result.usage.images,
            "pixel_steps": result.usage.pixel_steps,
            "peak_memory_gb": round(result.usage.peak_memory_gb, 3),
            "bytes_downloaded": result.usage.bytes_downloaded,
            "cost_usd": None if (cost := result.usage.cost_usd) is None else round(cost, 8),
        },
        "reproduce": {
            "model": result.reproduce.model,
            "loras": [*result.reproduce.loras],
            "versions": dict(result.reproduce.versions),
            "input": dict(result.reproduce.input),
        },
        "warnings": [*result.warnings],
    }


def encode_seconds(answer: Mapping[str, JsonValue]) -> float:
    """What the pictures of an answer of `encode_result` took to encode."""
    timings = answer["timings"]
    seconds = timings["encode_s"] if isinstance(timings, dict) else 0.0
    return seconds if isinstance(seconds, float) else 0.0


def encode_error(error: WorkerError, request_id: str) -> dict[str, JsonValue]:
    """A failure as a caller gets it. Strings are made valid UTF-8: half a surrogate pair would lose the answer."""
    answer: dict[str, JsonValue] = {
        "error": _utf8(error.message) or "The job failed.",
        "code": error.code,
        "retryable": error.retryable,
        "request_id": _utf8(request_id),
    }
    if error.field:
        answer["field"] = _utf8(error.field)
    if error.hint:
        answer["hint"] = _utf8(error.hint)
    if error.details:
        answer["details"] = _plain(error.details)
    return answer


def encode_progress(progress: Progress) -> dict[str, JsonValue]:
    """What a progress update says; `preview` is the base64 of a JPEG."""
    said: dict[str, JsonValue] = {
        "phase": progress.phase,
        "step": progress.step,
        "total": progress.total,
        "message": progress.message,
    }
    if progress.preview is not None:
        said["preview"] = to_base64(encode(progress.preview, "jpeg", PREVIEW_QUALITY))
    return said


def _canonical(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    said: dict[str, str] = {}
    for name, value in fields.items():
        canonical = ALIASES.get(name, name)
        if canonical in found:
            raise InvalidRequest(f"{said[canonical]} and {name} mean the same; send one of them.", field=name)
        found[canonical], said[canonical] = value, name
    return found


def _whole(value: JsonValue) -> JsonValue:
    """2.0 as 2, also in lists and objects: JSON has one kind of number, and some clients write all of it with a dot."""
    if isinstance(value, list):
        return [_whole(part) for part in value]
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(value: JsonValue) -> list[JsonValue]:
    """The pictures of a list, or of lists in it, as some pipelines have them; nothing where nothing was sent."""
    if isinstance(value, list):
        return [part for item in value for part in _flat(item)]
    return [] if value is None else [value]


# Fields that are objects of their own.
# pydantic's error types in words that stand after "must be".
_MUST: Mapping[str, str] = {
    "string_type": "a text",
    "string_unicode": "valid UTF-8 text, without half of a surrogate pair",
    "string_too_long": "at most {max_length} characters long",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "too_long": "a list of at most {max_length}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "at most {le}",
    "enum": "one of {expected}",
    "literal_error": "one of {expected}",
}


def _field_error(error: ValidationError) -> WorkerError:
    """pydantic's first complaint in our words; an unknown key before the required one that it was meant to be."""
    found = error.errors(include_url=False)
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    loc = first["loc"][1:] if first["loc"][:1] == ("params",) else first["loc"]
    field = _utf8(str(loc[0]))[:80] if loc else "input"
    name = _utf8("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip("."))[:80]
    if first["type"] == "extra_forbidden":
        known = [info.alias or name for name, info in _OBJECTS[field].model_fields.items()]
        near = difflib.get_close_matches(str(loc[-1])[:80], known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}."
        return UnknownParameter(f"{name} is not a known field; {fix}", field=field)
    if first["type"] == "missing":
        return ParameterOutOfRange(f"{name} is missing; add it.", field=field)
    limits = {key: _plainly(value) for key, value in first.get("ctx", {}).items()}
    must = _MUST.get(first["type"], "valid ({reason})").format_map(limits | {"reason": first["msg"]})
    sent = first.get("input")
    words = str(limits.get("expected", "")).replace(" or ", ", ").split(", ")
    near = difflib.get_close_matches(sent[:40].lower(), words, n=1) if isinstance(sent, str) else []
    size = f"{len(sent)} characters were" if first["type"] == "string_too_long" else f"{_shown(sent)} was"
    size = f"{limits.get('actual_length')} were" if first["type"] == "too_long" else size
    hint = f"Did you mean {near[0]}?" if near else None
    return ParameterOutOfRange(f"{name} must be {must}; {size} sent.", field=field, hint=hint)


def _plainly(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.replace("'", "") if isinstance(value, str) else value


def _check_json(value: JsonValue) -> None:
    """Refuse what JSON should not hold: NaN and infinity, nesting, keys, numbers and lists beyond any use."""
    todo: list[tuple[str, JsonValue, int]] = [("input", value, 0)]
    parts = 0
    while todo:
        name, item, depth = todo.pop()
        parts += 1
        if depth > _MAX_DEPTH:
            raise InvalidRequest(f"{name} is nested more than {_MAX_DEPTH} deep; flatten it.", field=name)
        if parts + len(todo) > _MAX_PARTS:
            raise InvalidRequest(f"{name} has too many parts; at most {_MAX_PARTS:,} are taken.", field=name)
        if isinstance(item, float) and not math.isfinite(item):
            raise ParameterOutOfRange(f"{name} must be a finite number; NaN or infinity was sent.", field=name)
        if isinstance(item, int) and abs(item) >= _MAX_WHOLE:
            raise ParameterOutOfRange(f"{name} must be a number of at most 64 bits; a larger one was sent.", field=name)
        if isinstance(item, dict):
            if len(item) > _MAX_KEYS or not all(isinstance(key, str) for key in item):
                raise InvalidRequest(f"{name} may hold at most {_MAX_KEYS} named fields.", field=name)
            if not all(key.strip() for key in item):
                raise InvalidRequest(f"{name} holds a field without a name; name it or leave it out.", field=name)
            todo += [(_utf8(key)[:80] if depth == 0 else name, part, depth + 1) for key, part in item.items()]
        elif isinstance(item, list):
            todo += [(name, part, depth + 1) for part in item[:_MAX_PARTS]]
        elif not isinstance(item, str | int | float | None):
            raise InvalidRequest(f"{name} holds something that JSON does not have; send plain JSON.", field=name)


def _plain(value: object) -> JsonValue:
    if isinstance(value, str):
        return _utf8(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_utf8(str(key)): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return _utf8(str(value))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "nothing" if value is None else "something else")


def _shown(value: object) -> str:
    """What was sent, as JSON, and no more of it than a sentence can carry."""
    if isinstance(value, str):
        value = _utf8(value[:60])
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, dict | list) else _kind(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
