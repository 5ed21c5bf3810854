"""Progress as callers get it: in our JSON, with a small JPEG of the image so far."""

from pydantic import JsonValue

from worker.core.image import Raster
from worker.core.result import AnswerFile, Progress
from worker.media.decoding import decode_image
from worker.media.images import encode, to_base64
from worker.wire import result

_QUALITY = 80


def encode_progress(progress: Progress) -> dict[str, JsonValue]:
    """Write a progress update, its preview included."""
    return result.encode_progress(progress, None if progress.preview is None else encode_preview(progress.preview))


def encode_preview(preview: Raster | AnswerFile) -> str:
    """Encode a preview as the base64 of a JPEG. One that came as a file stays as it is."""
    if isinstance(preview, AnswerFile):
        return to_base64(preview.data)
    return to_base64(encode(preview, "jpeg", _QUALITY))


def preview_size(preview: Raster | AnswerFile) -> tuple[int, int]:
    """Return the pixels of a preview from left to right, and from top to bottom."""
    image = decode_image(preview.data, "preview").raster if isinstance(preview, AnswerFile) else preview
    return image.width, image.height
