"""Stability's v2beta API: a form goes out, and the image comes back on the same connection.

Contract: platform.stability.ai/docs/api-reference. 150 requests in 10 seconds, then a lock-out of 60.
"""

from pydantic import JsonValue

from image_client.errors import ContentFiltered, ContentRefused, GenerationFailed, Unsupported
from image_client.providers.answers import media_type_of, require_success, whole_number, words_of
from image_client.providers.fitting import name_of_size
from image_client.providers.provider import (
    Abilities,
    Call,
    File,
    Finished,
    FormPart,
    HttpAnswer,
    HttpRequest,
    Pace,
    Provider,
    Running,
    Sizes,
)
from image_client.request import Operation

_RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "2:3": (832, 1216),
    "3:2": (1216, 832),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
_SD3 = ("sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium")
_MODELS = (*_SD3, "core", "ultra")
_MAX_SEED = 4294967294


def abilities(model: str, base_url: str) -> Abilities:
    """What a model takes. Only SD3.5 starts from an image; inpainting and upscaling are services of their own."""
    if model not in _MODELS:
        raise Unsupported(f"model must be one of {', '.join(_MODELS)}; {model} was sent.", field="model")
    fields = {"size", "negative_prompt", "seed", "strength"}
    if model in _SD3:
        fields.add("guidance_scale")
    if model == "sd3.5-large-turbo":
        fields.remove("negative_prompt")
    operations: set[Operation] = {"generate", "inpaint", "upscale"}
    if model in _SD3:
        operations.add("edit")
    return Abilities(
        operations=frozenset(operations),
        fields=frozenset(fields),
        formats=("png", "jpeg") if model in _SD3 else ("png", "jpeg", "webp"),
        sizes=Sizes(_RATIOS),
        guidance=(1, 10),
        max_seed=_MAX_SEED,
    )


def prepare(call: Call) -> HttpRequest:
    """Send the form of the service that does the operation; JSON is not taken there."""
    request = call.request
    fields: dict[str, JsonValue] = {
        "prompt": request.prompt or None,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "output_format": request.output_format,
    }
    if request.operation in ("generate", "edit"):
        service = "generate/sd3" if call.model in _SD3 else f"generate/{call.model}"
        fields["model"] = call.model if call.model in _SD3 else None
        fields["cfg_scale"] = request.guidance_scale
        if request.operation == "edit":
            fields |= {"mode": "image-to-image", "strength": 0.7 if request.strength is None else request.strength}
        else:
            fields["aspect_ratio"] = name_of_size(request.width, request.height, Sizes(_RATIOS))
    else:
        service = "edit/inpaint" if request.operation == "inpaint" else "upscale/fast"
        if request.operation == "upscale":
            fields = {"output_format": request.output_format}
    fields |= request.extra
    parts = [FormPart(name, str(value)) for name, value in fields.items() if value is not None]
    for name, data in (("image", request.image), ("mask", request.mask)):
        if data is not None:
            parts.append(FormPart(name, data, name, media_type_of(data) or "application/octet-stream"))
    url = f"{call.base_url.rstrip('/')}/v2beta/stable-image/{service}"
    return HttpRequest("POST", url, {**call.bearer, "Accept": "image/*"}, form=tuple(parts))


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read the image; what stands in the headers says whether it was filtered."""
    if answer.status == 403 and b"moderation" in answer.body:
        raise ContentRefused(f"Stability's moderation refuses the request: {words_of(answer)}", status=403)
    require_success(answer)
    reason = answer.headers.get("finish-reason", "SUCCESS")
    job_id = answer.headers.get("x-request-id")
    if reason == "CONTENT_FILTERED":
        raise ContentFiltered("Stability drew the image and blurred it; it is charged.")
    if reason != "SUCCESS" or media_type_of(answer.body) is None:
        raise GenerationFailed(f"Stability sent no image: {reason}, {words_of(answer)}")
    seed = whole_number(answer.headers.get("seed"))
    raw: JsonValue = {"finish-reason": reason, "seed": seed, "x-request-id": job_id}
    return Finished((File(answer.body, call.request.seed if seed is None else seed),), job_id, call.model, raw=raw)


STABILITY = Provider(
    name="stability",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url="https://api.stability.ai",
    default_model="sd3.5-large",
    token_variables=("STABILITY_API_KEY", "STABILITY_KEY"),
    first_byte=120.0,
    pace=Pace(starts=150, window=10.0, lockout=60.0),
)
