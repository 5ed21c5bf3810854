"""Progress as callers get it: in our JSON, with a small JPEG of the image so far."""

from pydantic import JsonValue

from worker.core.image import Raster
from worker.core.result import Progress
from worker.media.images import encode, to_base64
from worker.wire import result

_QUALITY = 80


def encode_progress(progress: Progress) -> dict[str, JsonValue]:
    """Write a progress update, its preview included."""
    return result.encode_progress(progress, None if progress.preview is None else encode_preview(progress.preview))


def encode_preview(preview: Raster) -> str:
    """Encode a preview as the base64 of a JPEG."""
    return to_base64(encode(preview, "jpeg", _QUALITY))
