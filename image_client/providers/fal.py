"""fal's queue: a request is handed in, asked for by its status, and its result fetched when it is done.

Contract: docs.fal.ai/model-apis/inference/queue.
"""

from urllib.parse import urlsplit

from pydantic import JsonValue

from image_client.errors import ContentFiltered, GenerationFailed, UnknownOutcome
from image_client.providers.answers import (
    data_uri,
    file_or_link,
    json_object,
    require_success,
    sentence,
    text_of,
    whole_number,
)
from image_client.providers.provider import (
    Abilities,
    Call,
    Finished,
    HttpAnswer,
    HttpRequest,
    Provider,
    Running,
    Sizes,
)

_FIELDS = frozenset({"size", "seed", "num_inference_steps", "guidance_scale"})
_GRID = Sizes(step=8, least=64, most=14142)
_SCHNELL = Abilities(
    frozenset({"generate"}), _FIELDS - {"guidance_scale"}, ("jpeg", "png"), _GRID, steps=(1, 12), most=4
)
_MODELS = {"fal-ai/flux/schnell": _SCHNELL}
_ANY = Abilities(
    frozenset({"generate", "edit", "inpaint", "upscale"}),
    _FIELDS | {"negative_prompt", "strength"},
    ("jpeg", "png", "webp"),
    _GRID,
    most=4,
)


def abilities(model: str, base_url: str) -> Abilities:
    """What a model takes, where it is known."""
    return _MODELS.get(model, _ANY)


def prepare(call: Call) -> HttpRequest:
    """Hand the request in."""
    request = call.request
    size: JsonValue = {"width": request.width, "height": request.height} if request.width else None
    fields: dict[str, JsonValue] = {
        "prompt": request.prompt or None,
        "negative_prompt": request.negative_prompt,
        "image_size": size,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "num_images": request.n if request.n > 1 else None,
        "image_url": data_uri(request.image) if request.image else None,
        "mask_url": data_uri(request.mask) if request.mask else None,
        "strength": request.strength,
        "output_format": request.output_format,
    }
    body: dict[str, JsonValue] = {name: value for name, value in fields.items() if value is not None}
    return HttpRequest("POST", f"{call.base_url.rstrip('/')}/{call.model}", _key(call), body | request.extra)


def cancel(call: Call, running: Running) -> HttpRequest:
    """Take a request back; one that is being drawn may still be drawn to its end."""
    return HttpRequest("PUT", f"{running.poll_url.removesuffix('/status')}/cancel", _key(call))


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read what the queue says, or the result."""
    require_success(answer)
    body = json_object(answer)
    images = body.get("images", [body["image"]] if "image" in body else None)
    if isinstance(images, list):
        return _finished(images, body, call)
    return _queued(body, call)


def _key(call: Call) -> dict[str, str]:
    return {"Authorization": f"Key {call.token}"} if call.token else {}


def _queued(body: dict[str, JsonValue], call: Call) -> Running:
    """Read where the request stands, and where to ask for it."""
    asked, status = call.job, body.get("status")
    job_id = text_of(body.get("request_id")) or (asked.job_id if asked else None)
    where = text_of(body.get("response_url")) or (asked.poll_url.removesuffix("/status") if asked else None)
    if job_id is None or where is None or status not in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED"):
        if job_id is not None or status in ("FAILED", "CANCELED"):
            raise GenerationFailed(f"The request failed: {sentence(body) or status}")
        raise UnknownOutcome(f"The answer names no request: {sentence(body) or 'it is empty'}")
    if status == "COMPLETED" and body.get("error"):
        raise GenerationFailed(f"The request failed: {sentence(body)}")
    here = call.base_url.rstrip("/") + urlsplit(where).path
    return Running(job_id, here if status == "COMPLETED" else f"{here}/status", at_once=status == "COMPLETED")


def _finished(images: list[JsonValue], body: dict[str, JsonValue], call: Call) -> Finished:
    flagged = body.get("has_nsfw_concepts")
    if isinstance(flagged, list) and flagged and all(flagged):
        raise ContentFiltered("fal drew the image and blacked it out as unsafe; it is charged.")
    seed = whole_number(body.get("seed"))
    files = tuple(file_or_link(image.get("url") if isinstance(image, dict) else image, seed) for image in images)
    rest: dict[str, JsonValue] = {name: value for name, value in body.items() if name not in ("images", "image")}
    return Finished(files, None, call.model, raw=rest)


FAL = Provider(
    name="fal",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url="https://queue.fal.run",
    default_model="fal-ai/flux/schnell",
    token_variables=("FAL_KEY",),
    scheme="Key",
    poll=0.5,
    cancel=cancel,
)
