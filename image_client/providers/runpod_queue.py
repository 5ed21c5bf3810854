"""Our own worker: over HTTP (`selfhosted`), and as an endpoint of RunPod. Both speak RunPod's API.

A job is handed in at /run and asked for at /status. Our HTTP server draws an Idempotency-Key once; RunPod knows none.
Contract: docs/api.md of the worker, docs.runpod.io/serverless/endpoints.
"""

from decimal import Decimal, InvalidOperation

from pydantic import JsonValue

from image_client.errors import (
    AuthenticationFailed,
    GenerationFailed,
    ImageClientError,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    ResultLost,
    UnknownOutcome,
)
from image_client.providers.answers import (
    base64_text,
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
    Pace,
    Provider,
    Running,
)

_FIELDS = ("prompt", "negative_prompt", "width", "height", "seed", "num_inference_steps", "guidance_scale", "strength")
# The worker's own codes (docs/errors.md) of jobs that were never drawn.
_BUSY = frozenset({"overloaded", "rate_limited", "quota_exceeded"})
_REFUSED = frozenset(
    {
        "invalid_request",
        "unknown_parameter",
        "parameter_out_of_range",
        "invalid_image",
        "model_not_found",
        "unsupported_model",
        "unsafe_format",
        "incompatible_adapter",
    }
)
_NOT_READY = frozenset({"source_error", "source_unavailable", "shutting_down"})


def abilities(model: str, base_url: str) -> Abilities:
    """Everything: what a model cannot do, the worker itself says in one sentence before it loads anything."""
    return Abilities(
        operations=frozenset({"generate", "edit", "inpaint", "upscale"}),
        fields=frozenset({"size", *_FIELDS}),
        formats=("png", "jpeg", "webp"),
        most=100,
        max_seed=2**53 - 1,
    )


def prepare(call: Call) -> HttpRequest:
    """Hand the job in."""
    request = call.request
    job: dict[str, JsonValue] = {name: value for name in _FIELDS if (value := getattr(request, name)) not in (None, "")}
    if call.model:
        job["model"] = call.model
    if request.n > 1:
        job["num_images"] = request.n
    if request.image is not None:
        job["image"] = base64_text(request.image)
    if request.mask is not None:
        job["mask_image"] = base64_text(request.mask)
    if request.operation == "upscale":
        job["task"] = "upscaling"
    if request.output_format is not None:
        job["output"] = {"format": request.output_format}
    job |= request.extra
    headers = {**call.bearer, "Idempotency-Key": call.request_id, "X-Request-ID": call.request_id}
    return HttpRequest("POST", f"{_endpoint(call)}/run", headers, {"input": job})


def parse(answer: HttpAnswer, call: Call) -> Finished | Running:
    """Read an answer of /run or /status."""
    require_success(answer)
    body = json_object(answer)
    job_id, status = text_of(body.get("id")), body.get("status")
    if job_id is None:
        raise UnknownOutcome(f"The answer names no job: {sentence(body) or 'it is empty'}")
    if status in ("IN_QUEUE", "IN_PROGRESS"):
        return Running(job_id, f"{_endpoint(call)}/status/{job_id}")
    output = body.get("output")
    if call.job is None and output is None and not body.get("error"):  # handed in again: /run says only that it is done
        return Running(job_id, f"{_endpoint(call)}/status/{job_id}", at_once=True)
    if status != "COMPLETED":
        raise _failure(str(status), body.get("error"), output if isinstance(output, dict) else {})
    if not isinstance(output, dict):
        raise GenerationFailed("The job is done and its answer holds no image.")
    return _finished(job_id, body, output, call)


def cancel(call: Call, running: Running) -> HttpRequest:
    """Take a job back."""
    return HttpRequest("POST", f"{_endpoint(call)}/cancel/{running.job_id}", call.bearer)


def _finished(job_id: str, body: dict[str, JsonValue], output: dict[str, JsonValue], call: Call) -> Finished:
    images = output.get("images")
    found = images if isinstance(images, list) and images else [_single(output)]
    seeds = output.get("seeds")
    known = seeds if isinstance(seeds, list) and len(seeds) == len(found) else [output.get("seed")] * len(found)
    files = tuple(file_or_link(image, whole_number(seed)) for image, seed in zip(found, known, strict=True))
    model, version = text_of(output.get("model")), text_of(output.get("version")) or text_of(output.get("revision"))
    raw: dict[str, JsonValue] = {**body, "output": {k: v for k, v in output.items() if k not in ("image", "images")}}
    return Finished(files, job_id, model or call.model or None, version, _cost(output.get("usage")), raw)


def _single(output: dict[str, JsonValue]) -> JsonValue:
    """Return the one image of a worker that is not ours: they put it under several names."""
    names = ("image", "image_url", "image_base64", "message")
    return next((output[name] for name in names if output.get(name)), None)


def _failure(status: str, error: JsonValue, output: dict[str, JsonValue]) -> ImageClientError:
    """Return the error of a job that failed; the worker's code stands in its output."""
    code, said = output.get("code"), sentence(error) or sentence(output) or f"its status is {status}"
    if code in _REFUSED:
        return RequestRefused(f"The worker refuses the request: {said}")
    if code in _BUSY:
        return RateLimited(f"The worker is busy: {said}")
    if code in _NOT_READY:
        return ProviderUnavailable(f"The worker cannot draw it now: {said}")
    if code in ("access_denied", "unauthenticated"):
        return AuthenticationFailed(f"The worker does not allow it: {said}")
    if code == "job_not_found":
        return ResultLost(f"The worker knows no such job any more: {said}")
    return GenerationFailed(f"The job failed: {said}")


def _cost(usage: JsonValue) -> Decimal | None:
    if not isinstance(usage, dict) or usage.get("cost_usd") is None:
        return None
    try:
        return Decimal(str(usage["cost_usd"]))
    except InvalidOperation:
        return None


def _endpoint(call: Call) -> str:
    """Return the address of the endpoint; our own server takes any name for one."""
    base = call.base_url.rstrip("/")
    return base if "/v2/" in base else f"{base}/v2/local"


SELFHOSTED = Provider(
    name="selfhosted",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    base_url="http://127.0.0.1:8000",
    token_variables=("IMAGE_WORKER_API_KEY",),
    token_required=False,
    idempotent=True,
    poll=0.1,
    cancel=cancel,
)

RUNPOD_ENDPOINT = Provider(
    name="runpod",
    abilities=abilities,
    prepare=prepare,
    parse=parse,
    short_base="https://api.runpod.ai/v2/",
    token_variables=("RUNPOD_API_KEY",),
    poll=0.5,
    pace=Pace(starts=1000, window=10.0),
    cancel=cancel,
)
