"""OpenAI's images API, and servers that speak it (`base_url`): JSON to draw, a form to edit.

At OpenAI itself sizes are its three; a compatible server also takes the fields of diffusers, beside the others.
Contract: openai 3.54 (its types), platform.openai.com/docs/api-reference/images.
"""

from io import BytesIO

from pydantic import JsonValue

from image_client.errors import ContentRefused, GenerationFailed, PaymentRequired, Unsupported
from image_client.providers.answers import (
    file_or_link,
    json_object,
    media_type_of,
    require_success,
    seeds_of,
    text_of,
    words_of,
)
from image_client.providers.provider import (
    Abilities,
    Call,
    Finished,
    FormPart,
    HttpAnswer,
    HttpRequest,
    Provider,
    Running,
    Sizes,
)
from image_client.request import Operation

OFFICIAL = "https://api.openai.com/v1"
_SIZES = {"1024x1024": (1024, 1024), "1536x1024": (1536, 1024), "1024x1536": (1024, 1536)}
_OPERATIONS: frozenset[Operation] = frozenset({"generate", "edit", "inpaint"})
_EXTENDED = ("negative_prompt", "seed", "num_inference_steps", "guidance_scale", "strength")


def abilities(model: str, base_url: str) -> Abilities:
    """OpenAI's own models choose seed and steps themselves; compatible servers take what diffusers takes."""
    if base_url.rstrip("/") == OFFICIAL:
        return Abilities(_OPERATIONS, frozenset({"size"}), ("png", "jpeg", "webp"), Sizes(_SIZES), most=10)
    return Abilities(_OPERATIONS, frozenset({"size", *_EXTENDED}), ("png", "jpeg", "webp"), most=10)


def prepare(call: Call) -> HttpRequest:
    """Ask for images; an image to start from and its mask go along as files."""
    request = call.request
    fields: dict[str, JsonValue] = {
        "prompt": request.prompt,
        "model": call.model or None,
        "n": request.n,
        "size": f"{request.width}x{request.height}" if request.width else None,
        "output_format": request.output_format,
        **{name: getattr(request, name) for name in _EXTENDED},
        **request.extra,
    }
    said: dict[str, JsonValue] = {name: value for name, value in fields.items() if value is not None}
    base = call.base_url.rstrip("/")
    headers = {**call.bearer, "X-Request-ID": call.request_id}
    if request.image is None:
        return HttpRequest("POST", f"{base}/images/generations", headers, said)
    parts = [FormPart(name, str(value)) for name, value in said.items()]
    parts.append(_file("image", request.image))
    if request.mask is not None:
        parts.append(_file("mask", transparent_where_white(request.mask)))
    return HttpRequest("POST", f"{base}/images/edits", headers, form=tuple(parts))


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read the images, inline or behind links."""
    _require_success(answer)
    body = json_object(answer)
    data = body.get("data")
    items = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    if not items:
        raise GenerationFailed(f"The answer holds no image: {words_of(answer)}")
    seeds = seeds_of(call.request.seed, len(items))
    files = tuple(
        file_or_link(item.get("b64_json") or item.get("url"), seed) for item, seed in zip(items, seeds, strict=True)
    )
    rest: dict[str, JsonValue] = {name: value for name, value in body.items() if name != "data"}
    rest["revised_prompts"] = [item.get("revised_prompt") for item in items]
    model = text_of(body.get("model")) or call.model or None
    return Finished(files, answer.headers.get("x-request-id"), model, raw=rest)


def _require_success(answer: HttpAnswer) -> None:
    """Raise the refusal of an answer that is not 2xx; two of them are known by their codes alone."""
    if answer.status == 429 and b"insufficient_quota" in answer.body:
        raise PaymentRequired(f"The account has no credit: {words_of(answer)}", status=429)
    if answer.status == 400 and (b"moderation_blocked" in answer.body or b"content_policy" in answer.body):
        raise ContentRefused(f"The provider's moderation refuses the request: {words_of(answer)}", status=400)
    require_success(answer)


def transparent_where_white(mask: bytes) -> bytes:
    """Return a mask as OpenAI has them: transparent where the image is drawn anew. Needs Pillow."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        message = "A mask for OpenAI's API needs Pillow: pip install 'universal-image-client[pil]'."
        raise Unsupported(message, field="mask") from None
    white = Image.open(BytesIO(mask)).convert("L")
    turned = Image.new("RGBA", white.size, (0, 0, 0, 255))
    turned.putalpha(ImageOps.invert(white))
    file = BytesIO()
    turned.save(file, "PNG")
    return file.getvalue()


def _file(name: str, data: bytes) -> FormPart:
    media_type = media_type_of(data) or "application/octet-stream"
    return FormPart(name, data, f"{name}.{media_type.rpartition('/')[2]}", media_type)


OPENAI = Provider(
    name="openai",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url=OFFICIAL,
    default_model="gpt-image-2",
    token_variables=("OPENAI_API_KEY",),
    first_byte=180.0,
)
