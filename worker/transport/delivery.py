"""Pictures and videos into an answer that fits its transport: measured as it will be sent, and never lost."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from worker.core.errors import InvalidRequest, ResultTooLarge, SourceUnavailable
from worker.core.request import Format, OutputOptions
from worker.core.result import JobResult
from worker.media.images import encode, to_base64
from worker.media.video import encode_video
from worker.transport.wire import encode_result

# Smaller and smaller; each is tried when the one before does not fit.
_SMALLER: tuple[tuple[Format, int], ...] = (("webp", 90), ("jpeg", 90), ("jpeg", 75))
_SMALLER_VIDEO: tuple[tuple[Format, int], ...] = (("mp4", 80), ("mp4", 60), ("mp4", 40))
_CONTENT_TYPES: Mapping[Format, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}


class Uploader(Protocol):
    """Somewhere that pictures can be put."""

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` and return a URL that reads it."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """How answers leave this worker. `max_bytes` is of the whole JSON body. Blocking: call it in a thread."""

    max_bytes: int
    bucket: Uploader | None = None

    def check(self, output: OutputOptions) -> None:
        """Refuse what cannot be delivered, before it is drawn."""
        if output.delivery == "s3" and self.bucket is None:
            raise InvalidRequest(
                "output.delivery s3 needs a bucket, and this worker has none; leave it out, or let the operator set "
                "the BUCKET_ variables.",
                field="output",
            )

    def encode(self, result: JobResult, output: OutputOptions, job_id: str) -> dict[str, JsonValue]:
        """The answer of CONTRACT §4 within `max_bytes`. Raises ResultTooLarge when nothing makes it fit."""
        started = time.monotonic()
        video = result.artifacts[0].is_video
        format_ = output.format_of(video=video)
        what = "videos" if video else "pictures"
        files = _files(result, format_, output.quality, metadata=output.metadata)
        notes: list[str] = []
        if output.delivery == "s3":
            try:
                return self._uploaded(result, files, format_, job_id, started, [])
            except SourceUnavailable as error:  # the pictures are drawn and paid for: not lost for that
                notes.append(f"{error.message} The {what} are in the answer itself.")
        answer = _inline(result, files, format_, started, notes)
        if body_bytes(answer) <= self.max_bytes:
            return answer
        limit = f"the {self.max_bytes / 1e6:g} MB that an answer may have here"
        if self.bucket is not None and not notes:
            try:
                note = f"The {what} exceed {limit} and were uploaded instead."
                return self._uploaded(result, files, format_, job_id, started, [note])
            except SourceUnavailable as error:
                notes.append(error.message)
        for smaller, quality in _ladder(format_, output.quality, video=video):
            files = _files(result, smaller, quality, metadata=False)
            note = f"As {format_} the {what} exceed {limit}; they were encoded as {smaller} (quality {quality})."
            answer = _inline(result, files, smaller, started, [*notes, note])
            if body_bytes(answer) <= self.max_bytes:
                return answer
        fewer = "fewer num_frames or a smaller size" if video else "fewer num_images or a smaller size"
        raise ResultTooLarge(
            f"The {what} exceed {limit} in every format; ask for {fewer}, or let the operator configure a bucket.",
            field="num_frames" if video and len(result.artifacts) == 1 else "num_images",
            details={
                "max_bytes": self.max_bytes,
                "seeds": [item.seed for item in result.artifacts],
                **({"bucket": notes[0]} if notes else {}),
            },
        )

    def _uploaded(
        self, result: JobResult, files: list[bytes], format_: Format, job_id: str, started: float, notes: list[str]
    ) -> dict[str, JsonValue]:
        if self.bucket is None:
            raise SourceUnavailable("No bucket is configured.")
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:64] or "job"
        urls = [
            self.bucket.put(f"{safe}/{index}.{format_}", body, _CONTENT_TYPES[format_])
            for index, body in enumerate(files)
        ]
        answer = encode_result(result, urls, format_, time.monotonic() - started)
        return _noted(answer, notes) | {f"{'video' if result.artifacts[0].is_video else 'image'}_url": urls[0]}


def body_bytes(answer: Mapping[str, JsonValue]) -> int:
    """The size of `answer` as the platform will receive it."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode("utf-8", "replace"))


def _files(result: JobResult, format_: Format, quality: int, *, metadata: bool) -> list[bytes]:
    comment = json.dumps(result.reproduce.input, ensure_ascii=True) if metadata else None
    return [
        encode_video(item.frames, item.fps, format_, quality)
        if item.is_video
        else encode(item.raster, format_, quality, comment)
        for item in result.artifacts
    ]


def _inline(
    result: JobResult, files: list[bytes], format_: str, started: float, notes: list[str]
) -> dict[str, JsonValue]:
    images = [to_base64(body) for body in files]
    return _noted(encode_result(result, images, format_, time.monotonic() - started), notes)


def _noted(answer: dict[str, JsonValue], notes: list[str]) -> dict[str, JsonValue]:
    warnings = answer["warnings"]
    return answer | {"warnings": [*(warnings if isinstance(warnings, list) else []), *notes]}


def _ladder(format_: Format, quality: int, *, video: bool) -> list[tuple[Format, int]]:
    """What is smaller than the format and quality that did not fit."""
    if video:
        return [step for step in _SMALLER_VIDEO if format_ != "mp4" or step[1] < quality]
    order = ("png", "webp", "jpeg")
    return [step for step in _SMALLER if order.index(step[0]) >= order.index(format_)]
