"""Hugging Face's inference API, and our gateway (`modal`), which speaks it too: the answer is the image itself.

Contract: huggingface_hub 2.4 (its client and its providers/hf_inference.py), docs/api.md of the worker.
"""

import re
from dataclasses import replace

from pydantic import JsonValue

from image_client.errors import GenerationFailed, ProviderUnavailable
from image_client.providers.answers import base64_text, media_type_of, require_success, sentence, whole_number, words_of
from image_client.providers.provider import Abilities, Call, File, Finished, HttpAnswer, HttpRequest, Provider, Running

_LOADING = re.compile(rb'"estimated_time": ?(\d{1,4}(?:\.\d+)?)')  # seconds, in a 503
_PARAMETERS = ("negative_prompt", "width", "height", "seed", "num_inference_steps", "guidance_scale")
_ACCEPT = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", None: "image/png"}


def abilities(model: str, base_url: str) -> Abilities:
    """The fields of diffusers; the model on the other side has its own bounds."""
    return Abilities(
        operations=frozenset({"generate", "edit"}),
        fields=frozenset({"size", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "strength"}),
        formats=("png", "jpeg", "webp"),
    )


def prepare(call: Call) -> HttpRequest:
    """Ask for one image; an image to start from is base64 in `inputs`, with its prompt among the parameters."""
    request = call.request
    known = {name: value for name in _PARAMETERS if (value := getattr(request, name)) is not None}
    parameters: dict[str, JsonValue] = {**known}
    inputs = request.prompt
    if request.image is not None:
        inputs = base64_text(request.image)
        parameters["prompt"] = request.prompt
        width, height = parameters.pop("width", None), parameters.pop("height", None)
        if width is not None:
            parameters["target_size"] = {"width": width, "height": height}
        if request.strength is not None:
            parameters["strength"] = request.strength
    headers = {**call.bearer, "Accept": _ACCEPT[request.output_format]}
    body: dict[str, JsonValue] = {"inputs": inputs, "parameters": {**parameters, **request.extra}}
    return HttpRequest("POST", f"{call.base_url.rstrip('/')}/models/{call.model}", headers, body)


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read the image."""
    loading = _LOADING.search(answer.body) if answer.status == 503 and "retry-after" not in answer.headers else None
    if loading is not None:
        said = f"The model is being loaded: {words_of(answer)}"
        raise ProviderUnavailable(said, retry_after=float(loading[1]), status=503)
    require_success(answer)
    if media_type_of(answer.body) is None:
        raise GenerationFailed(f"The answer is no image: {sentence(_text(answer)) or 'it says nothing'}")
    seed = whole_number(answer.headers.get("x-seed"))
    job_id = answer.headers.get("x-request-id")
    kept: dict[str, JsonValue] = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
    file = File(answer.body, call.request.seed if seed is None else seed)
    return Finished((file,), job_id, answer.headers.get("x-model") or call.model or None, raw=kept)


def _text(answer: HttpAnswer) -> str:
    return answer.body[:500].decode("utf-8", "replace")


def prepare_gateway(call: Call) -> HttpRequest:
    """Ask our gateway: the model stands in the body, and the request id makes sending it again safe."""
    asked = prepare(call)
    body = asked.json if isinstance(asked.json, dict) else {}
    named: dict[str, JsonValue] = {**body, "model_id": call.model} if call.model else body
    headers = {**asked.headers, "Idempotency-Key": call.request_id, "X-Request-ID": call.request_id}
    return replace(asked, url=f"{call.base_url.rstrip('/')}/diffusers/generate", headers=headers, json=named)


HUGGINGFACE = Provider(
    name="huggingface",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url="https://router.huggingface.co/hf-inference",
    default_model="black-forest-labs/FLUX.1-schnell",
    token_variables=("HF_TOKEN",),
    first_byte=120.0,
)

MODAL = Provider(
    name="modal",
    abilities=abilities,
    prepare=prepare_gateway,
    parse=parse,
    token_variables=("IMAGE_WORKER_API_KEY",),
    token_required=False,
    idempotent=True,
    first_byte=300.0,
)
