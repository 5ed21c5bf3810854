"""Replicate: a prediction is made, and asked for until it is done.

The prediction's id comes back at once, since nobody waits for the image on the same connection: what is known by its
id is never lost. Contract: replicate.com/docs/reference/http; 600 predictions a
minute (docs/topics/predictions/rate-limits).
"""

import re

from pydantic import JsonValue

from image_client.errors import ContentFiltered, GenerationFailed, RateLimited, UnknownOutcome
from image_client.providers.answers import (
    data_uri,
    file_or_link,
    json_object,
    require_success,
    seeds_of,
    sentence,
    text_of,
    words_of,
)
from image_client.providers.fitting import name_of_size
from image_client.providers.provider import (
    Abilities,
    Call,
    Finished,
    HttpAnswer,
    HttpRequest,
    Pace,
    Provider,
    Running,
    Sizes,
)
from image_client.request import Operation, OutputFormat

_RESETS = re.compile(rb"resets in ~?(\d{1,4})s")  # where a 429 says so in words alone
_RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
_GENERATE: frozenset[Operation] = frozenset({"generate"})
_BOTH: frozenset[Operation] = frozenset({"generate", "edit"})
_FORMATS: tuple[OutputFormat, ...] = ("webp", "jpeg", "png")
_FLUX = Abilities(
    _GENERATE, frozenset({"size", "seed", "num_inference_steps"}), _FORMATS, Sizes(_RATIOS), (1, 4), most=4
)
# Models whose inputs are known; any other is asked with the names that most have.
_MODELS = {
    "black-forest-labs/flux-schnell": _FLUX,
    "black-forest-labs/flux-dev": Abilities(
        _BOTH,
        frozenset({"size", "seed", "num_inference_steps", "guidance_scale", "strength"}),
        _FORMATS,
        Sizes(_RATIOS),
        (1, 50),
        (0, 10),
        most=4,
    ),
}
_ANY = Abilities(
    frozenset({"generate", "edit", "inpaint", "upscale"}),
    frozenset({"size", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "strength"}),
    _FORMATS,
    most=10,
)


def abilities(model: str, base_url: str) -> Abilities:
    """What a model takes, where it is known."""
    return _MODELS.get(model.split(":")[0], _ANY)


def inputs_of(call: Call) -> dict[str, JsonValue]:
    """Return the `input` of a prediction, under the names that models there have."""
    request, can = call.request, abilities(call.model, call.base_url)
    named = name_of_size(request.width, request.height, can.sizes)
    known = can is not _ANY
    fields: dict[str, JsonValue] = {
        "prompt": request.prompt or None,
        "negative_prompt": request.negative_prompt,
        "aspect_ratio": named,
        "width": None if named else request.width,
        "height": None if named else request.height,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance" if known else "guidance_scale": request.guidance_scale,
        "num_outputs": request.n if request.n > 1 else None,
        "image": data_uri(request.image) if request.image else None,
        "mask": data_uri(request.mask) if request.mask else None,
        "prompt_strength": request.strength,
        "output_format": "jpg" if request.output_format == "jpeg" else request.output_format,
    }
    return {name: value for name, value in fields.items() if value is not None} | request.extra


def prepare(call: Call) -> HttpRequest:
    """Make a prediction: of a model's latest version, or of `owner/name:version`."""
    name, _, version = call.model.partition(":")
    base = call.base_url.rstrip("/")
    body: dict[str, JsonValue] = {"input": inputs_of(call)}
    if version:
        return HttpRequest("POST", f"{base}/v1/predictions", call.bearer, {"version": version, **body})
    return HttpRequest("POST", f"{base}/v1/models/{name}/predictions", call.bearer, body)


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read a prediction."""
    _require_turn(answer)
    require_success(answer)
    body = json_object(answer)
    job_id, status = text_of(body.get("id")), body.get("status")
    if job_id is None:
        raise UnknownOutcome(f"The answer names no prediction: {sentence(body) or 'it is empty'}")
    if status in ("starting", "processing"):
        return Running(job_id, f"{call.base_url.rstrip('/')}/v1/predictions/{job_id}")
    if status != "succeeded":
        said = sentence(body.get("error")) or f"its status is {status}"
        kind = ContentFiltered if "nsfw" in said.lower() else GenerationFailed
        raise kind(f"The prediction failed: {said}")
    output = body.get("output")
    outputs = output if isinstance(output, list) and output else [None if output == [] else output]
    seeds = seeds_of(call.request.seed, len(outputs))
    files = tuple(file_or_link(item, seed) for item, seed in zip(outputs, seeds, strict=True))
    model = text_of(body.get("model")) or call.model
    return Finished(files, job_id, model, text_of(body.get("version")), raw=body if _small(body) else None)


def _require_turn(answer: HttpAnswer) -> None:
    """Raise the refusal of a 429 that says only in words how long it lasts."""
    resets = _RESETS.search(answer.body) if answer.status == 429 and "retry-after" not in answer.headers else None
    if resets is not None:
        raise RateLimited(f"Too many requests: {words_of(answer)}", retry_after=float(resets[1]), status=429)


def search(call: Call) -> HttpRequest:
    """Ask for the latest predictions."""
    return HttpRequest("GET", f"{call.base_url.rstrip('/')}/v1/predictions", call.bearer)


def found(answer: HttpAnswer, call: Call, known: frozenset[str]) -> Running | None:
    """Return the prediction whose input is this call's, and whose id nobody here has heard yet."""
    require_success(answer)
    results = json_object(answer).get("results")
    wanted = inputs_of(call)
    for item in results if isinstance(results, list) else []:
        job_id = text_of(item.get("id")) if isinstance(item, dict) else None
        if isinstance(item, dict) and job_id and job_id not in known and item.get("input") == wanted:
            return Running(job_id, f"{call.base_url.rstrip('/')}/v1/predictions/{job_id}", at_once=True)
    return None


def cancel(call: Call, running: Running) -> HttpRequest:
    """Take a prediction back."""
    return HttpRequest("POST", f"{call.base_url.rstrip('/')}/v1/predictions/{running.job_id}/cancel", call.bearer)


def _small(body: dict[str, JsonValue]) -> bool:
    """Tell whether a prediction is short enough to be kept: one with images in it is not."""
    return not str(body.get("output"))[:8].startswith(("data:", "['data:"))


REPLICATE = Provider(
    name="replicate",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url="https://api.replicate.com",
    default_model="black-forest-labs/flux-schnell",
    token_variables=("REPLICATE_API_TOKEN",),
    poll=0.5,
    pace=Pace(starts=600, window=60.0, lockout=10.0),
    search=search,
    found=found,
    cancel=cancel,
)
