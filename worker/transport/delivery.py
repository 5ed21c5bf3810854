"""Pictures and videos into an answer that fits its transport: measured as it will be sent, and never lost."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pydantic import JsonValue

from worker.core.errors import DiskFull, InvalidRequest, ResultTooLarge, SourceUnavailable
from worker.core.request import CONTENT_TYPES, FRAME_FORMATS, Format, GenerationRequest, OutputOptions, S3Config
from worker.core.result import JobResult
from worker.media.images import encode, to_base64
from worker.media.video import encode_video
from worker.transport.infotext import comment_on
from worker.wire.result import encode_result

# Smaller and smaller; each is tried when the one before does not fit.
_SMALLER: tuple[tuple[Format, int], ...] = (("webp", 90), ("jpeg", 90), ("jpeg", 75))
_SMALLER_FRAMES: tuple[tuple[Format, int], ...] = (("jpeg", 90), ("jpeg", 75))
_SMALLER_VIDEO: tuple[tuple[Format, int], ...] = (("mp4", 80), ("mp4", 60), ("mp4", 40))
# Where an answer holds its files.
_FILES = ("image", "images", "video", "videos")


class Uploader(Protocol):
    """Somewhere that pictures can be put: a bucket, or the volume."""

    def check(self) -> None:
        """Raise InvalidRequest for a place that may not be used."""
        ...

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` and return a URL that reads it, or its path."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """How answers leave this worker. `max_bytes` is of the whole JSON body. Blocking: call it in a thread."""

    max_bytes: int
    bucket: Uploader | None = None
    open_bucket: Callable[[S3Config], Uploader] | None = None  # a caller's own
    volume: Uploader | None = None

    def of(self, request: GenerationRequest) -> "Delivery":
        """How this request's answer leaves: by the caller's own bucket where he names one."""
        if request.s3Config is None or self.open_bucket is None:
            return self
        return replace(self, bucket=self.open_bucket(request.s3Config))

    def check(self, output: OutputOptions) -> None:
        """Refuse what cannot be delivered, before it is drawn."""
        if self.bucket is not None:
            self.bucket.check()
        if output.delivery == "s3" and self.bucket is None:
            raise InvalidRequest(
                "output.delivery s3 needs a bucket, and this worker has none; send s3Config, leave it out, or let the "
                "operator set the BUCKET_ variables.",
                field="output",
            )

        if output.delivery == "volume" and self.volume is None:
            raise InvalidRequest(
                "output.delivery volume needs a volume, and this worker has none; leave it out, or let the operator "
                "attach one or set VOLUME_DIR.",
                field="output",
            )

    def encode(self, result: JobResult, output: OutputOptions, job_id: str) -> dict[str, JsonValue]:
        """The answer within `max_bytes`. Raises ResultTooLarge when nothing makes it fit."""
        started = time.monotonic()
        video = result.artifacts[0].is_video
        format_ = output.format_of(video=video)
        what = "videos" if video else "pictures"
        files = _files(result, format_, output.quality, metadata=output.metadata)
        notes: list[str] = []
        if format_ == "jpeg" and any(item.raster.mode == "RGBA" for item in result.artifacts):
            notes.append("JPEG has no transparency: what was transparent is white; png and webp keep it.")
        if output.delivery != "base64":
            try:
                return self._put(output.delivery, result, files, format_, job_id, started, notes)
            except (SourceUnavailable, DiskFull) as error:  # the pictures are drawn and paid for: not lost for that
                notes.append(f"{error.message} The {what} are in the answer itself.")
        answer = _inline(result, files, format_, started, notes)
        if body_bytes(answer) <= self.max_bytes:
            return answer
        limit = f"the {self.max_bytes / 1e6:g} MB that an answer may have here"
        if self.bucket is not None and output.delivery == "base64":
            try:
                note = f"The {what} exceed {limit} and were uploaded instead."
                return self._put("s3", result, files, format_, job_id, started, [*notes, note])
            except SourceUnavailable as error:
                notes.append(error.message)
        for smaller, quality in _ladder(format_, output.quality, video=video):
            files = _files(result, smaller, quality, metadata=output.metadata)
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
                **({"bucket": notes[-1]} if notes and self.bucket else {}),
            },
        )

    def _put(
        self,
        place: Literal["s3", "volume"],
        result: JobResult,
        files: list[bytes],
        format_: Format,
        job_id: str,
        started: float,
        notes: list[str],
    ) -> dict[str, JsonValue]:
        """The answer with URLs of the bucket, or paths below the volume, in place of base64."""
        uploader = self.bucket if place == "s3" else self.volume
        if uploader is None:
            raise SourceUnavailable(f"No {'bucket' if place == 's3' else 'volume'} is configured.")
        found = [
            uploader.put(f"{_folder(job_id)}/{index}.{format_}", body, CONTENT_TYPES[format_])
            for index, body in enumerate(files)
        ]
        answer = encode_result(result, found, format_, time.monotonic() - started)
        what = "video" if "video" in answer else "image"
        return _noted(answer, notes) | {f"{what}_{'url' if place == 's3' else 'path'}": found[0]}


def body_bytes(answer: Mapping[str, JsonValue]) -> int:
    """The size of `answer` as the platform will receive it. Its files, which are ASCII, are counted unwritten."""
    files = {name: value for name in _FILES if isinstance(value := answer.get(name), str | list)}
    inside = [str(text) for value in files.values() for text in ([value] if isinstance(value, str) else value)]
    rest = {**answer, **{name: "" if isinstance(value, str) else [""] * len(value) for name, value in files.items()}}
    written = json.dumps({"output": rest}, ensure_ascii=False).encode("utf-8", "replace")
    return len(written) + sum(map(len, inside))


def _folder(job_id: str) -> str:
    """A folder's name for a job: its id where that is a safe name, else one of its own."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:64]
    return (
        safe if safe == job_id else f"{safe[:48]}_{hashlib.sha256(job_id.encode('utf-8', 'replace')).hexdigest()[:12]}"
    )


def _files(result: JobResult, format_: Format, quality: int, *, metadata: bool) -> list[bytes]:
    found: list[bytes] = []
    for item in result.artifacts:
        comment = comment_on(result, item) if metadata else None
        if item.is_video and format_ not in FRAME_FORMATS:
            found.append(encode_video(item.frames, item.fps, format_, quality, comment))
        else:
            found += [encode(picture, format_, quality, comment) for picture in item.frames or (item.raster,)]
    return found


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
    if video and format_ in FRAME_FORMATS:
        return [step for step in _SMALLER_FRAMES if format_ != "jpeg" or step[1] < quality]
    if video:
        return [step for step in _SMALLER_VIDEO if format_ != "mp4" or step[1] < quality]
    order = ("png", "webp", "jpeg")
    return [step for step in _SMALLER if order.index(step[0]) >= order.index(format_)]
