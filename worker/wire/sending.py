"""A job as the request that another worker takes: what its caller sent, by the canonical names."""

import hashlib
import json
from collections.abc import Mapping

import pybase64
from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, to_json

from worker.catalog.interface.request_fields import spread
from worker.core.job import Job
from worker.core.request import GenerationRequest, S3Config

_LONG = 50_000  # letters
# Written by themselves below; a model is named as this side resolved it, and deadlines are kept on this side.
_APART = {"params", "output", "s3Config", "seed", "model", "timeout_s"}


def encode_request(job: Job) -> dict[str, JsonValue]:
    """Write the request of `job`, with its media as they came, and with the seed that was chosen for it.

    The same job is always written the same, so that it can be sent again under the same key.
    """
    request = job.request
    fields: dict[str, JsonValue] = spread(request).model_dump(mode="json", exclude=_APART, exclude_defaults=True)
    fields |= request.params
    fields |= {"model": job.call.spec.served_name, "seed": job.seeds[0]}
    if job.choice is not None:  # its version is named, and nobody has to choose again
        fields.pop("sticky", None)
        if job.choice.arm is not None:  # for pairs, which are made where the images are
            fields["arm"] = job.choice.arm
    if output := _output(request):
        fields["output"] = output
    if request.s3Config is not None:
        fields["s3Config"] = _bucket(request.s3Config)
    return fields


def request_key(job: Job) -> str:
    """Return the idempotency key of `job`: the same whenever it is sent, and for no other job."""
    text = f"{job.id}\0{job.call.spec.served_name}\0{job.seeds[0]}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:40]


def encode_body(body: Mapping[str, JsonValue]) -> bytes:
    """Write a body as JSON: no NaN, and no half of a surrogate pair.

    Images in its `input` are base64, in which nothing is escaped: a search of megabytes for that, by a writer who grows
    as it goes, takes three times as long.
    """
    fields = body.get("input")
    images = {} if not isinstance(fields, dict) else {name: text for name, text in fields.items() if _is_image(text)}
    if not isinstance(fields, dict) or not images or len(images) == len(fields):
        return _plainly(body)
    rest = {name: value for name, value in fields.items() if name not in images}
    pieces = [b'{"input":', _plainly(rest)[:-1]]
    for name, text in images.items():
        pieces += [b",", _plainly(name), b':"', str(text).encode("ascii"), b'"']
    others = {name: value for name, value in body.items() if name != "input"}
    return b"".join([*pieces, b"}," if others else b"}", _plainly(others)[1:]])


def _is_image(value: JsonValue) -> bool:
    """True for a long text that is base64 throughout; to decode it takes an eighth of the time of to write it."""
    if not isinstance(value, str) or len(value) < _LONG:
        return False
    try:
        pybase64.b64decode(value, validate=True)
    except ValueError:
        return False
    return True


def _plainly(body: JsonValue | Mapping[str, JsonValue]) -> bytes:
    try:
        return to_json(body, inf_nan_mode="null")
    except PydanticSerializationError:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _output(request: GenerationRequest) -> dict[str, JsonValue]:
    output: dict[str, JsonValue] = request.output.model_dump(mode="json", exclude_defaults=True)
    if output.get("delivery") == "stream":  # which is the way from this side to its caller
        del output["delivery"]
    return output


def _bucket(bucket: S3Config) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = bucket.model_dump(by_alias=True, exclude_none=True)
    return fields | {
        "accessId": bucket.access_id.get_secret_value(),
        "accessSecret": bucket.access_secret.get_secret_value(),
    }
