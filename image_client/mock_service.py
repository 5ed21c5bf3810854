"""What the mock provider does with a request: used within the process, and by the mock server over HTTP. No I/O."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from image_client.drawing import drawn, size_of_png
from image_client.providers.answers import seed_of
from image_client.providers.provider import HttpAnswer

VERSION = "1"
DEFAULT_SIZE = (256, 256)
MAX_SIDE, MAX_IMAGES = 4096, 10


def answer(body: bytes, request_id: str) -> HttpAnswer:
    """Draw what the JSON body asks for: 200 with images, or 400 with a sentence."""
    try:
        fields = json.loads(body)
        images, seeds = _images(fields, request_id)
    except (ValueError, TypeError, AttributeError, binascii.Error):
        return json_answer(
            400, {"error": "The body must be a JSON object with a prompt, and width, height, seed and n."}
        )
    model = fields.get("model") or "mock-1"
    texts = [base64.b64encode(image).decode() for image in images]
    said = {"id": f"mock-{request_id}", "images": texts, "seeds": seeds, "model": model, "version": VERSION}
    return json_answer(200, said)


def json_answer(status: int, value: Mapping[str, Any], **headers: str) -> HttpAnswer:
    """Return a JSON answer; `headers` are written with _ for -."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return HttpAnswer(status, {"content-type": "application/json", **named}, json.dumps(value).encode())


def _images(fields: Mapping[str, Any], request_id: str) -> tuple[list[bytes], list[int]]:
    operation = str(fields.get("operation", "generate"))
    start = base64.b64decode(fields["image"]) if fields.get("image") else b""
    own = size_of_png(start) or DEFAULT_SIZE
    if operation == "upscale":
        own = (own[0] * 2, own[1] * 2)
    width, height = (int(fields.get(name) or side) for name, side in zip(("width", "height"), own, strict=True))
    count = int(fields.get("n", 1))
    first = int(fields["seed"]) if "seed" in fields else seed_of(request_id)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and 0 < count <= MAX_IMAGES):
        raise ValueError
    words = str(fields.get("prompt", "")) if operation == "generate" else f"{operation}: {fields.get('prompt', '')}"
    seeds = [first + index for index in range(count)]
    return [drawn(words, width, height, seed) for seed in seeds], seeds
