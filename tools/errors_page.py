"""Write docs/errors.md: every code that a caller can be answered with, and what to do about it.

    make errors

The codes, statuses and whether to try again come from the code; the words stand here. A code without words stops it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.app.queue import INVALID_CONFIGURATION
from worker.core.errors import EngineFailure, WorkerError
from worker.transport.web import edit
from worker.transport.web.errors import FRAMEWORK, RETRYABLE, status_of
from worker.transport.web.openai_schema import TYPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"

# Of each code what it means, and what whoever is answered with it does.
WORDS: Mapping[str, tuple[str, str]] = {
    "invalid_request": (
        "A field is missing, of the wrong type, or contradicts another.",
        "Change the field that `field` names, as the sentence says.",
    ),
    "unknown_parameter": (
        "A field that the model, or the door, does not take.",
        'Remove it, or correct its name: `{"action": "schema", "model": …}` lists what the model takes.',
    ),
    "parameter_out_of_range": (
        "A value is outside its bounds, or no value of its field.",
        "Send one within the bounds of the sentence; it often names the nearest.",
    ),
    "invalid_image": (
        "An input image or video is damaged, too large, of the wrong shape, or cannot be fetched.",
        "Open it in a viewer and save it anew as PNG; for a URL, see that anybody can fetch it without a login.",
    ),
    "model_not_found": (
        "No such model, or the operator does not allow it.",
        '`{"action": "models"}` lists those there are. Others need `ALLOW_UNREGISTERED_MODELS=true`.',
    ),
    "unsupported_model": (
        "The model is known, or not, and nothing here can run it so.",
        "The sentence says why. [models.md](models.md) lists what runs; `inspect` tells what a file is.",
    ),
    "unsafe_format": (
        "A pickle (`.ckpt`, `.pt`, `.bin`), which can run code when it is read.",
        "Use a safetensors or GGUF file of the model. The operator may set `ALLOW_PICKLES=true`.",
    ),
    "incompatible_adapter": (
        "A LoRA, ControlNet, embedding or the like that was made for another model family.",
        "Use one for this family, or the model it was made for: the sentence names it where the file tells.",
    ),
    "job_not_found": (
        "No such job of this caller, or its answer is no longer kept.",
        "Check the id and the key. Fetch answers within `JOB_RETENTION_SECONDS`, or send the job again.",
    ),
    "access_denied": (
        "A gated or private model, a refused token, a folder or host name that is not allowed, an action for admins.",
        "Accept the model's licence on its page and set `HF_TOKEN` or `CIVITAI_TOKEN`; or use an admin's key.",
    ),
    "unauthenticated": (
        "No API key was sent where one is needed, or one that is not known.",
        "Send `Authorization: Bearer <key>`. `imgworker keys new NAME` makes a key.",
    ),
    "overloaded": (
        "The worker has all the jobs, bodies or connections that it takes.",
        "Wait as `Retry-After` says (`details.retry_after_s`), then send the same again. The operator may add workers.",
    ),
    "rate_limited": (
        "This caller sends faster than `RATE_LIMIT_PER_MINUTE`.",
        "Wait as `Retry-After` says.",
    ),
    "quota_exceeded": (
        "This caller has used up `QUOTA_PIXEL_STEPS_PER_DAY`.",
        "Come back tomorrow (UTC), or ask for a smaller job. A job above a whole day's share says `retryable: false`.",
    ),
    "source_error": (
        "The group of the three below. This version always says which of them it is.",
        "As for them.",
    ),
    "source_unavailable": (
        "The place of the weights or the bucket does not answer, or the worker is offline and has no copy.",
        "Try again later. With `OFFLINE` set, put the model onto the volume first.",
    ),
    "corrupt_file": (
        "A model file is truncated, damaged, incomplete, or not what its name says.",
        "Try again once: a damaged download is fetched anew. If it stays, the published file is so: take another.",
    ),
    "disk_full": (
        "The download or the result does not fit on the volume.",
        "Use a larger volume, raise `CACHE_MAX_GB`, or remove models with `imgworker cache`.",
    ),
    "job_timeout": (
        "The deadline passed before the job was done.",
        "Send it again: downloads go on where they stopped. Ask for fewer steps, or raise `TIMEOUT_SECONDS`.",
    ),
    "job_cancelled": (
        "The caller took the job back, or hung up.",
        "Send it again if you still want it.",
    ),
    "result_too_large": (
        "The answer does not fit the transport, in any format.",
        "Ask for fewer images or frames, or smaller ones; or configure a bucket (`BUCKET_ENDPOINT_URL`).",
    ),
    "engine_failure": (
        "The pipeline raised an error while it ran.",
        "Send it once more. If it stays, change the parameters that are not defaults, and look into the worker's log.",
    ),
    "gpu_oom": (
        "The device's memory was not enough, after every fallback.",
        "Ask for a smaller size or fewer images, or use a larger GPU; `plan` says what a model needs.",
    ),
    "load_failed": (
        "The weights could not be made into a pipeline.",
        "The sentence names the part. Use another file of the model, or name its parts in models.yaml.",
    ),
    "invalid_output": (
        "The model returned NaN, nothing, or only black pixels.",
        "Set `dtype: float32` or another VAE for the model in models.yaml; or change prompt and seed.",
    ),
    "shutting_down": (
        "The worker is being stopped, and could not finish the job.",
        "Send it again: another worker takes it.",
    ),
    "unreachable": (
        "A gateway has no worker that answers, or lost the one that had the job.",
        "Send it again in a minute. The operator looks at GET /health of the gateway, and at the workers it names.",
    ),
    "device_lost": (
        "The GPU is unusable until the process ends. RunPod replaces the worker (`refresh_worker`).",
        "Send it again. If it comes back on every worker, look at the driver and the GPU.",
    ),
    "internal_error": (
        "Something unforeseen: a fault of the worker's.",
        "Look into the worker's log for the `request_id`, and report what stands there.",
    ),
    "not_found": (
        "Nothing is served at this path.",
        "Check the path; `GET /openapi.json` lists all of them.",
    ),
    "method_not_allowed": (
        "The path is right and the method is not.",
        "Use one of the methods in the `Allow` header; most paths that draw want POST.",
    ),
    "request_too_large": (
        "The body is larger than `MAX_BODY_MB`.",
        "Send smaller images, or their URLs.",
    ),
    "request_timeout": (
        "The request came too slowly, or was never whole.",
        "Send it again, on a faster connection; for large images send their URLs.",
    ),
    "address_too_long": (
        "The URL is longer than 8,000 bytes.",
        "Put what it holds into the body.",
    ),
    "headers_too_large": (
        "The headers are more than 100, or larger than 32 KB together.",
        "Send less: cookies of other sites, or what a proxy adds.",
    ),
    "unsupported_media_type": (
        "The body is neither JSON nor a form, or not the one that this path takes.",
        "Send `Content-Type: application/json`, or `multipart/form-data` where a form is wanted.",
    ),
    "invalid_file": (
        "The file is no image, or of a kind that is not read. A damaged image is `invalid_image`.",
        "Send PNG, JPEG or WebP.",
    ),
    "inference_error": (
        "Drawing failed in any way but `gpu_oom`.",
        "As for `engine_failure`, `load_failed`, `invalid_output`, `device_lost`, `internal_error`: the detail tells.",
    ),
    "timeout": ("The deadline passed: `job_timeout` elsewhere.", "As for `job_timeout`."),
    INVALID_CONFIGURATION: (
        "The settings and models.yaml do not fit together. The worker answers every job so.",
        "Correct what the sentence names, and deploy again. A value that is no value of its setting ends the process, "
        "and the sentence stands in its log.",
    ),
}

_AGAIN = {True: "yes", False: "no", None: "–"}
_HEAD = """# When something goes wrong: every error code

Written by `make errors`; a test compares the page with the code, another one provokes every code.

An answer that failed is one sentence for people and a code for programs:

```json
{"error": "width must be a multiple of 8 between 64 and 4096; 1001 was sent (nearest: 1000).",
 "code": "parameter_out_of_range", "field": "width", "retryable": false, "request_id": "…"}
```

- `retryable` in the answer counts, not the table: one failure of a kind may differ.
- `request_id` is on every log line of the job, and in the header `X-Request-ID`.
- On RunPod the job is FAILED. `error` is the sentence; the other keys are its `output`, over HTTP status 200.
- OpenAI's doors write `{"error": {"message", "type", "code", "param"}}` with the same codes, and `x-should-retry`.
  `type` is TYPES.
- Hugging Face's doors repeat sentence and code in the headers `X-Error-Message` and `X-Error-Code`.
- `/edit` writes `{"error": "<code>", "detail": "<sentence>", "request_id"}`.
- A WebSocket's `failed` event has the same keys.
- A WebSocket without a known API key is refused with 403; a message that is too large closes it with 1009.

No answer, no code: see [quickstart](quickstart.md#7-when-it-does-not-work).
"""
_JOBS = """
## Of a job, at every door
"""
_SERVER = """
## Of the HTTP server
"""
_EDIT = """
## Of `/edit` alone

Its clients know few numbers: 400 for what the caller can mend, 503 for what may pass, 504 for a deadline.
The other codes of this page come from it too.
"""
_START = """
## Of a worker of RunPod's queue that cannot start
"""


@dataclass(frozen=True, slots=True)
class Code:
    """One code as callers get it. `status` and `retryable` are None where an answer has none."""

    name: str
    status: int | None
    retryable: bool | None


def job_codes() -> list[Code]:
    """Return the codes of worker/core/errors.py, with the statuses that the server gives them."""
    kinds = [kind for kind in _descendants(WorkerError) if kind.__module__ == WorkerError.__module__]
    return [Code(kind.code, status_of(kind("")), kind.retryable) for kind in kinds]


def server_codes() -> list[Code]:
    """Return the codes of what the server refuses before any door sees it."""
    return [Code(name, status, status in RETRYABLE) for status, (name, _) in FRAMEWORK.items()]


def edit_codes() -> list[Code]:
    """Return the codes that `/edit` alone answers with."""
    drawing = Code(edit.CODES[EngineFailure.code], edit.STATUSES.get(status_of(EngineFailure("")), 503), None)
    late = next(ours for ours, theirs in edit.CODES.items() if theirs != drawing.name)
    (deadline,) = (code for code in job_codes() if code.name == late)
    return [
        Code(edit.InvalidFile.code, edit.STATUSES[status_of(edit.InvalidFile(""))], False),
        drawing,
        Code(edit.CODES[late], edit.STATUSES[deadline.status or 0], deadline.retryable),
    ]


def all_codes() -> list[Code]:
    """Return every code once, in the page's order."""
    return [*job_codes(), *server_codes(), *edit_codes(), Code(INVALID_CONFIGURATION, None, False)]


def page() -> str:
    """The whole text of docs/errors.md. Raises KeyError for a code without words."""
    parts = [
        _HEAD.replace("TYPES", _openai_types()),
        _JOBS,
        _table(job_codes()),
        _SERVER,
        _table(server_codes()),
        _EDIT,
        _table(edit_codes()),
        _START,
        _table([code for code in all_codes() if code.status is None]),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _openai_types() -> str:
    named = [f"`{name}` ({status})" for status, name in TYPES.items()]
    return f"{', '.join(named)}; else `server_error` from 500 on and `invalid_request_error` below"


def _descendants(kind: type[WorkerError]) -> Iterator[type[WorkerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def _table(codes: Iterable[Code]) -> str:
    rows = [("code", "HTTP", "try again", "meaning", "what to do"), ("---",) * 5]
    for code in codes:
        name = f'<a id="{code.name}"></a>`{code.name}`'
        rows.append((name, str(code.status or "–"), _AGAIN[code.retryable], *WORDS[code.name]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(all_codes())} codes")
