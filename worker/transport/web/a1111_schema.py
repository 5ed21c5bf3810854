"""AUTOMATIC1111's JSON: what its API answers, and its way to say what failed."""

import json
import re
import time
from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue, RootModel

from worker.core.answer import Answer
from worker.core.request import MAX_IMAGES
from worker.core.result import AnswerFile, Progress
from worker.service.jobs.record import JobRecord, Status
from worker.transport.progress import encode_preview
from worker.transport.web.errors import Failure, json_response
from worker.transport.web.openapi import Documented
from worker.wire.foreign.a1111 import NAMES, is_known
from worker.wire.foreign.a1111_values import Payload
from worker.wire.result import encode_file

_NO_IMAGES = ("init_images", "mask", "image")  # left out of `parameters`, which says what was asked for
_PAIR = re.compile(r'\s*([\w \-/]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")

TXT2IMG: dict[str, Any] = {
    "prompt": {"type": ["string", "null"], "maxLength": 8_000},
    "negative_prompt": {"type": ["string", "null"], "maxLength": 8_000},
    "seed": {"type": ["integer", "null"], "minimum": -1},
    "steps": {"type": ["integer", "null"]},
    "cfg_scale": {"type": ["number", "null"]},
    "width": {"type": ["integer", "null"]},
    "height": {"type": ["integer", "null"]},
    "sampler_name": {"type": ["string", "null"]},
    "scheduler": {"type": ["string", "null"], "description": "The schedule: Karras, Exponential …"},
    "batch_size": {"type": ["integer", "null"], "minimum": 1},
    "n_iter": {"type": ["integer", "null"], "minimum": 1},
    "override_settings": {"type": ["object", "null"]},
    "alwayson_scripts": {"type": ["object", "null"]},
    "enable_hr": {"type": ["boolean", "null"]},
}
IMG2IMG: dict[str, Any] = {name: schema for name, schema in TXT2IMG.items() if name != "enable_hr"} | {
    "init_images": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_IMAGES},
    "mask": {"type": ["string", "null"], "description": "White where the image is redrawn."},
    "denoising_strength": {"type": ["number", "null"]},
    "mask_blur": {"type": ["integer", "null"], "minimum": 0},
    "inpainting_fill": {"enum": [0, 1, None]},
    "inpainting_mask_invert": {"enum": [0, 1, None]},
    "resize_mode": {"enum": [0, 1, 2, None]},
}


class A1111Error(Documented):
    """Any failure."""

    error: str = Field(description="The code.")
    detail: str = Field(description="One sentence.")
    body: str
    errors: str = Field(description="The same sentence: some clients read it here.")
    field: str | None = None


class A1111Images(Documented):
    """What was drawn. `info` is JSON in a text."""

    images: list[str]
    parameters: dict[str, JsonValue]
    info: str


class ExtraImage(Documented):
    """An enlarged image."""

    html_info: str
    image: str


class ProgressState(Documented):
    """The job of which progress tells."""

    skipped: bool
    interrupted: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class Standing(Documented):
    """How far the caller's newest job is."""

    progress: float
    eta_relative: float
    state: ProgressState
    current_image: str | None
    textinfo: str | None


class PngInfo(Documented):
    """What a file says of its origin."""

    info: str
    items: dict[str, JsonValue]
    parameters: dict[str, JsonValue]


class Nothing(RootModel[dict[str, JsonValue] | None]):
    """Nothing to say."""


class Listed(RootModel[list[dict[str, JsonValue]]]):
    """A list of objects that have a name."""


class Named(BaseModel):
    """Objects by name."""

    model_config = {"extra": "allow"}


def encode_failure(failure: Failure) -> Response:
    """Write a failure as clients of that API read it."""
    sentence = failure.message
    if models := failure.supported_models:
        sentence += f" There are {', '.join(models)}."
    body: dict[str, JsonValue] = {"error": failure.code, "detail": sentence, "body": "", "errors": sentence}
    if (field := failure.body.get("field")) is not None:
        body["field"] = NAMES.get(str(field), field)
    return json_response(body, failure.status, failure.headers)


def encode_images(
    payload: Payload, answers: Sequence[Answer], files: Sequence[AnswerFile], batch_size: int, notes: Sequence[str]
) -> dict[str, JsonValue]:
    """Write finished images; `answers` are what they were drawn by: one for all of them, or one for each."""
    parameters = {name: value for name, value in payload.items() if is_known(name) and name not in _NO_IMAGES}
    images: list[JsonValue] = [encode_file(file) for file in files]
    info = _info(payload, answers, batch_size, notes)
    return {"images": images, "parameters": parameters, "info": json.dumps(info)}


def _info(payload: Payload, answers: Sequence[Answer], batch_size: int, notes: Sequence[str]) -> dict[str, JsonValue]:
    first = answers[0]
    seeds = [seed for answer in answers for seed in answer.seeds]
    negative = str(first.reproduce.input.get("negative_prompt") or "")
    said, count = first.parameters, len(seeds)
    told = [*dict.fromkeys([*notes, *(warning for answer in answers for warning in answer.warnings)])]
    skipped = said.get("clip_skip")
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0],
        "all_seeds": [*seeds],
        "subseed": seeds[0],
        "all_subseeds": [*seeds],
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": _sampler(payload, first),
        "cfg_scale": said.get("guidance_scale", said.get("true_cfg_scale", 1.0)),
        "steps": said.get("num_inference_steps", 0),
        "batch_size": batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model,
        "sd_model_hash": (first.revision or "")[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": said.get("strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [_infotext(payload, first, negative, seed) for seed in seeds],
        "styles": [],
        "job_timestamp": _timestamp(),
        "clip_skip": skipped + 1 if isinstance(skipped, int) else 1,
        "is_using_inpainting_conditioning": False,
        "version": str(first.reproduce.versions.get("diffusers", "")),
        "warnings": [*told],
    }


def _sampler(payload: Payload, answer: Answer) -> str:
    named = payload.get("sampler_name") or payload.get("sampler_index") or answer.parameters.get("scheduler")
    return str(named or "")


def _infotext(payload: Payload, answer: Answer, negative: str, seed: int) -> str:
    """Write an image's parameters as that web UI does, which reads them again."""
    said = answer.parameters
    pairs = {
        "Steps": said.get("num_inference_steps"),
        "Sampler": _sampler(payload, answer),
        "CFG scale": said.get("guidance_scale"),
        "Seed": seed,
        "Size": f"{answer.width}x{answer.height}",
        "Model": answer.model,
        "Denoising strength": said.get("strength"),
    }
    line = ", ".join(f"{name}: {value}" for name, value in pairs.items() if value not in (None, ""))
    return "\n".join([answer.prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def encode_standing(record: JobRecord | None, seconds: float, *, with_image: bool) -> dict[str, JsonValue]:
    """Write how far a job is, of which work began `seconds` ago; None for nothing under way."""
    progress = record.progress if record is not None else None
    drawing = progress if progress is not None and progress.phase == "inference" else None
    share = drawing.step / drawing.total if drawing is not None and drawing.total else 0.0
    state: dict[str, JsonValue] = {
        "skipped": False,
        "interrupted": record is not None and record.status is Status.CANCELLED,
        "job": record.id if record is not None else "",
        "job_count": int(record is not None),
        "job_timestamp": _timestamp() if record is not None else "0",
        "job_no": 0,
        "sampling_step": drawing.step if drawing else 0,
        "sampling_steps": drawing.total if drawing else 0,
    }
    return {
        "progress": round(share, 4),
        "eta_relative": round(seconds / share - seconds, 2) if share else 0.0,
        "state": state,
        "current_image": _preview(progress) if with_image else None,
        "textinfo": progress.message or progress.phase if progress is not None else None,
    }


def _preview(progress: Progress | None) -> str | None:
    return encode_preview(progress.preview) if progress is not None and progress.preview is not None else None


def _timestamp() -> str:
    return time.strftime("%Y%m%d%H%M%S")


def parse_infotext(text: str) -> dict[str, JsonValue]:
    """Read an image's parameters out of the text that stands in its file."""
    if not text.strip():
        return {}
    *lines, last = text.strip().split("\n")
    pairs = {name.strip(): value.strip() for name, value in _PAIR.findall(last)}
    if "Steps" not in pairs:
        lines, pairs = [*lines, last], {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    found: dict[str, JsonValue] = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    found |= {name: _plain(value) for name, value in pairs.items()}
    if match := _SIZE.fullmatch(pairs.get("Size", "")):
        found |= {"Size-1": match[1], "Size-2": match[2]}
    return found


def _plain(value: str) -> JsonValue:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def encode_names(names: Sequence[str]) -> list[JsonValue]:
    """Write adapters that a prompt can name."""
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]
