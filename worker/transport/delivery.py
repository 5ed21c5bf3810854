"""Pictures into an answer that fits its transport: the body is measured as it will be sent, and never lost."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from worker.core.errors import InvalidRequest, ResultTooLarge, SourceUnavailable
from worker.core.request import OutputOptions
from worker.core.result import JobResult
from worker.media.images import Format, encode, to_base64
from worker.transport.wire import encode_result

# Smaller and smaller; each is tried when the one before does not fit.
_SMALLER: tuple[tuple[Format, int], ...] = (("webp", 90), ("jpeg", 90), ("jpeg", 75))
_CONTENT_TYPES: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


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
        files = _files(result, output.format, output.quality, metadata=output.metadata)
        notes: list[str] = []
        if output.delivery == "s3":
            try:
                return self._uploaded(result, files, output.format, job_id, started, [])
            except SourceUnavailable as error:  # the pictures are drawn and paid for: not lost for that
                notes.append(f"{error.message} The pictures are in the answer itself.")
        answer = _inline(result, files, output.format, started, notes)
        if body_bytes(answer) <= self.max_bytes:
            return answer
        limit = f"the {self.max_bytes / 1e6:g} MB that an answer may have here"
        if self.bucket is not None and not notes:
            try:
                note = f"The pictures exceed {limit} and were uploaded instead."
                return self._uploaded(result, files, output.format, job_id, started, [note])
            except SourceUnavailable as error:
                notes.append(error.message)
        for format_, quality in _SMALLER:
            if _rank(format_) < _rank(output.format):
                continue
            smaller = _files(result, format_, quality, metadata=False)
            note = (
                f"As {output.format} the pictures exceed {limit}; they were encoded as {format_} (quality {quality})."
            )
            answer = _inline(result, smaller, format_, started, [*notes, note])
            if body_bytes(answer) <= self.max_bytes:
                return answer
        raise ResultTooLarge(
            f"The pictures exceed {limit} in every format; ask for fewer num_images or a smaller size, or let the "
            "operator configure a bucket.",
            field="num_images",
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
        return _noted(answer, notes) | {"image_url": urls[0]}


def body_bytes(answer: Mapping[str, JsonValue]) -> int:
    """The size of `answer` as the platform will receive it."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode("utf-8", "replace"))


def _files(result: JobResult, format_: Format, quality: int, *, metadata: bool) -> list[bytes]:
    comment = json.dumps(result.reproduce.input, ensure_ascii=True) if metadata else None
    return [encode(item.raster, format_, quality, comment) for item in result.artifacts]


def _inline(
    result: JobResult, files: list[bytes], format_: str, started: float, notes: list[str]
) -> dict[str, JsonValue]:
    images = [to_base64(body) for body in files]
    return _noted(encode_result(result, images, format_, time.monotonic() - started), notes)


def _noted(answer: dict[str, JsonValue], notes: list[str]) -> dict[str, JsonValue]:
    warnings = answer["warnings"]
    return answer | {"warnings": [*(warnings if isinstance(warnings, list) else []), *notes]}


def _rank(format_: Format) -> int:
    return ("png", "webp", "jpeg").index(format_)
