"""The mock: a provider without images of its own, which writes the prompt on a PNG, offline and at once.

Without `base_url` it runs within this process; with one it is the server of `image_client.mock_server`.
"""

from pydantic import JsonValue

from image_client.errors import GenerationFailed
from image_client.providers.answers import (
    base64_text,
    file_or_link,
    json_object,
    require_success,
    sentence,
    text_of,
    whole_number,
)
from image_client.providers.provider import Abilities, Call, Finished, HttpAnswer, HttpRequest, Provider, Running, Sizes

IN_PROCESS = "mock:"
MODEL = "mock-1"


def abilities(model: str, base_url: str) -> Abilities:
    """Everything; most of it changes nothing."""
    return Abilities(
        operations=frozenset({"generate", "edit", "inpaint", "upscale"}),
        fields=frozenset({"size", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "strength"}),
        formats=("png",),
        sizes=Sizes(least=16, most=4096),
        most=10,
        max_seed=2**53 - 1,
    )


def prepare(call: Call) -> HttpRequest:
    """Ask for the images; the request id makes sending it again safe."""
    request = call.request
    fields: dict[str, JsonValue] = {
        "operation": request.operation,
        "prompt": request.prompt,
        "model": call.model,
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "n": request.n,
        "image": base64_text(request.image) if request.image else None,
    }
    body: dict[str, JsonValue] = {name: value for name, value in fields.items() if value is not None}
    headers = {**call.bearer, "Idempotency-Key": call.request_id}
    return HttpRequest("POST", f"{call.base_url.rstrip('/')}/images", headers, body | request.extra)


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read the images, or the error that came as 200."""
    require_success(answer)
    body = json_object(answer)
    images, seeds = body.get("images"), body.get("seeds")
    if not isinstance(images, list) or not images:
        raise GenerationFailed(f"The job failed: {sentence(body.get('error')) or 'its answer holds no image'}")
    known = seeds if isinstance(seeds, list) and len(seeds) == len(images) else [None] * len(images)
    files = tuple(file_or_link(image, whole_number(seed)) for image, seed in zip(images, known, strict=True))
    rest: dict[str, JsonValue] = {name: value for name, value in body.items() if name != "images"}
    return Finished(files, text_of(body.get("id")), text_of(body.get("model")), text_of(body.get("version")), raw=rest)


MOCK = Provider(
    name="mock",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url=IN_PROCESS,
    default_model=MODEL,
    token_required=False,
    idempotent=True,
)
