"""What of an answer is compared: all of it but what differs from run to run, or from machine to machine."""

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image

# Endings of JSON paths whose value is not compared, only its kind.
PATHS = (
    "timings.queue_s",
    "timings.download_s",
    "timings.load_s",
    "timings.inference_s",
    "timings.encode_s",
    "delayTime",
    "executionTime",
    "usage.gpu_seconds",
    "usage.*.gpu_seconds",
    "usage.peak_memory_gb",
    "versions.*",
    "version",
    "created",
    "created_at",
    "started_at",
    "completed_at",
    "deadline",
    "metrics.predict_time",
    "metrics.total_time",
    "details.retry_after_s",
    "headers.retry-after",
    "free_gb",
    "eta_relative",
    "age_s",
    "measured.s_per_megapixel_step",
    "measured.usd_per_megapixel_step",
)
# Headers that say when and how it was sent, not what.
HEADERS = ("date", "content-length", "connection")
# In texts: ids that nobody chose, days, waits and versions of libraries.
TEXTS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d\b"), "<day>"),
    (re.compile(r"\b(in|again in) \d+ seconds?\b"), r"\1 <n> seconds"),
    (re.compile(r'("[\w-]+": ")\d+\.\d+\.\d[^"]*"'), r'\1<version>"'),
    (re.compile(r"\b20\d{12}\b"), "<time>"),
    (re.compile(r"eyJ[\w-]+\.[\w-]{43}"), "<token>"),
    (re.compile(r"[\d.]+ GiB free"), "<n> GiB free"),
    (re.compile(r"(Version: )[^\s,]+"), r"\1<version>"),
)
_MAGIC = {
    b"\x89PNG\r\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"RIFF": "webp",
    b"GIF8": "gif",
}


def masked(value: Any, known: Mapping[str, str], pixels: bool = True, path: str = "") -> Any:
    """Return `value` with what is not compared replaced, and with a description in place of each image.

    `known` are texts by the names under which the conversation saved them. `pixels` is whether images have to be the
    same to the last bit.
    """
    if any(_ends(path, ending) for ending in PATHS):
        return f"<{_kind(value)}>"
    if isinstance(value, dict):
        return {text(key, known): masked(part, known, pixels, f"{path}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [masked(part, known, pixels, path) for part in value]
    if isinstance(value, str):
        return _image(value, pixels) or text(value, known)
    return value


def text(value: str, known: Mapping[str, str]) -> str:
    """Return a text with what is not compared replaced."""
    for name, found in known.items():
        value = value.replace(found, f"{{{name}}}")
    for pattern, stands in TEXTS:
        value = pattern.sub(stands, value)
    return value


def described(data: bytes, pixels: bool = True) -> dict[str, Any] | None:
    """Say what an image or video is; None for anything else."""
    if data[4:8] == b"ftyp":  # how a video is encoded depends on the number of processors
        return {"file": "mp4"}
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        return None
    with Image.open(io.BytesIO(data)) as image:
        found: dict[str, Any] = {"file": kind, "size": f"{image.width}x{image.height}", "mode": image.mode}
        if kind == "webp":
            found["coding"] = data[12:16].decode().strip()
        if kind == "jpeg":
            found["quantization"] = [table[:4] for table in image.quantization.values()]  # type: ignore[attr-defined]
        if (frames := getattr(image, "n_frames", 1)) > 1:
            found |= {"frames": frames, "duration": image.info.get("duration")}
        if said := _said(image):
            found["says"] = said
        if pixels:
            found["pixels"] = hashlib.sha256(image.convert("RGBA").tobytes()).hexdigest()[:16]
    return found


def _said(image: Image.Image) -> dict[str, str]:
    said = {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
    exif = image.getexif()
    for tag, value in {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}.items():
        if isinstance(value, bytes):  # eight bytes name the encoding
            value = value[8:].decode("utf-16-be", "replace")
        said[ExifTags.TAGS.get(tag, str(tag))] = str(value)
    if isinstance(comment := image.info.get("comment"), bytes):
        said["comment"] = comment.decode()
    said.pop("ExifOffset", None)
    return {key: text(value, {}) for key, value in said.items()}


def _image(value: str, pixels: bool) -> dict[str, Any] | None:
    if len(value) < 64:
        return None
    try:
        encoded = value.partition(";base64,")[2] if value.startswith("data:") else value
        return described(base64.b64decode(encoded, validate=True), pixels)
    except (binascii.Error, ValueError):
        return None


def _ends(path: str, ending: str) -> bool:
    parts, wanted = path.strip(".").split("."), ending.split(".")
    same: Callable[[str, str], bool] = lambda part, name: name in ("*", part)  # noqa: E731
    return len(parts) >= len(wanted) and all(map(same, parts[-len(wanted) :], wanted))


def _kind(value: Any) -> str:
    if isinstance(value, int | float) or (isinstance(value, str) and value.startswith("\0")):
        return "number"
    return "null" if value is None else type(value).__name__
