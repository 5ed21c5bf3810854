"""THE TABLE of foreign inputs: by which keys each is known, and what it becomes.

A job is handed in by programs that were written for another worker. What such an input has and none of ours may have
tells whose it is; an input without such a mark is ours, also where the two agree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from worker.core.errors import InvalidRequest
from worker.wire.foreign import a1111, cog, comfyui, sdxl

_MAX_SHOWN = 600  # characters of our form in a warning
_IMAGES = ("image", "mask", "video", "control")
# Those workers have one model each, or name it elsewhere: a field too many of ours is told, not read as theirs.
_OURS = frozenset({"model", "model_id"})


@dataclass(frozen=True, slots=True)
class Translation:
    """A foreign input in our fields, and warnings for its caller."""

    fields: dict[str, JsonValue]
    notes: tuple[str, ...]


def translate(payload: Mapping[str, JsonValue]) -> Translation | None:
    """Return a job's `input` in our fields if it is another worker's; None if it is ours, or says what it wants.

    Raises InvalidRequest for a ComfyUI workflow, with the request that says the same.
    """
    if "action" in payload:
        return None
    if isinstance(payload.get("api"), dict) and "payload" in payload:
        return _wrapped(payload)
    if (workflow := comfyui.find(payload)) is not None:
        raise comfyui.refusal(workflow)
    names = payload.keys()
    if names & _OURS:
        return None
    if names & a1111.MARKS:
        return _of_a1111(payload, has_image="init_images" in names)
    if names & sdxl.MARKS:
        return _told("worker-sdxl", *sdxl.decode(payload))
    if names & cog.MARKS:
        return _told("cog", *cog.decode(payload))
    return None


def _wrapped(payload: Mapping[str, JsonValue]) -> Translation:
    """Read `{"api": {"method", "endpoint"}, "payload"}`, as the workers around AUTOMATIC1111's web UI take it."""
    api, inner = payload["api"], payload["payload"]
    endpoint = str(api.get("endpoint", "")) if isinstance(api, dict) else ""
    name = endpoint.rstrip("/").rpartition("/")[2]
    if name not in ("txt2img", "img2img") or not isinstance(inner, dict):
        raise InvalidRequest(
            f"api.endpoint {json.dumps(endpoint[:60])} is not served at the queue, which takes txt2img and img2img; "
            'models are listed by {"input": {"action": "models"}}.',
            field="api",
        )
    return _of_a1111(inner, has_image=name == "img2img")


def _of_a1111(payload: Mapping[str, JsonValue], *, has_image: bool) -> Translation:
    decoded = a1111.decode(payload, {}, has_image=has_image)
    notes = [*decoded.notes]
    if decoded.hires is not None:
        raise InvalidRequest(
            "enable_hr takes two passes, and a job of the queue is one; send upscale, or the request to "
            "/sdapi/v1/txt2img of the HTTP server.",
            field="enable_hr",
        )
    changed = decoded.retouching
    if "mask_image" in decoded.fields and changed.is_inverted:
        raise InvalidRequest("inpainting_mask_invert is not served at the queue; send the mask inverted.", field="mask")
    if decoded.sources:
        raise InvalidRequest(
            "init_images takes one image at the queue; send a job for each, or the request to /sdapi/v1/img2img of the "
            "HTTP server.",
            field="init_images",
        )
    if "mask_image" in decoded.fields and (any(changed.blur) or changed.is_filled):
        notes.append("mask_blur and inpainting_fill have no effect at the queue; the HTTP server's /sdapi has them.")
    return _told("AUTOMATIC1111's API", decoded.fields, tuple(notes))


def _told(whose: str, fields: dict[str, JsonValue], notes: tuple[str, ...]) -> Translation:
    """Return the translation with a warning that shows the own form, without its images."""
    shown = {name: "…" if any(word in name for word in _IMAGES) and name != "num_images" else value
             for name, value in fields.items()}  # fmt: skip
    text = json.dumps({"input": shown}, ensure_ascii=False)
    form = text if len(text) <= _MAX_SHOWN else f"the fields {', '.join(fields)}"
    return Translation(fields, (f"Read as an input for {whose}; here it is {form}.", *notes))
