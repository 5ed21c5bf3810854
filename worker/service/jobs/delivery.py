"""Images and videos packed into an answer that fits its transport: measured as it will be sent, never lost."""

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

from worker.core.answer import Answer
from worker.core.errors import DiskFull, InvalidRequest, ResultTooLarge, SourceUnavailable, WorkerError
from worker.core.profile import TRACE_NAME, TRACE_TYPE
from worker.core.request import CONTENT_TYPES, FRAME_FORMATS, Format, GenerationRequest, OutputOptions, S3Config
from worker.core.result import AnswerFile, Artifact, EncodedArtifact, JobFacts, JobResult
from worker.media.images import encode
from worker.media.video import encode_video
from worker.service.jobs.infotext import comment_on
from worker.service.limits.pools import Pools
from worker.wire.result import body_bytes

# Smaller and smaller; each is tried when the one before does not fit.
_SMALLER: tuple[tuple[Format, int], ...] = (("webp", 90), ("jpeg", 90), ("jpeg", 75))
_SMALLER_FRAMES: tuple[tuple[Format, int], ...] = (("jpeg", 90), ("jpeg", 75))
_SMALLER_VIDEO: tuple[tuple[Format, int], ...] = (("mp4", 80), ("mp4", 60), ("mp4", 40))


class Uploader(Protocol):
    """A target for files: a bucket, or the volume."""

    @property
    def host(self) -> str:
        """The server that takes the files; "" for none."""
        ...

    def check(self) -> None:
        """Raise InvalidRequest if this target may not be used."""
        ...

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` and return a URL that reads it, or its path."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """The way by which answers leave. `max_bytes` bounds the whole JSON body."""

    max_bytes: int
    bucket: Uploader | None = None
    open_bucket: Callable[[S3Config], Uploader] | None = None  # a caller's own
    volume: Uploader | None = None
    is_done_elsewhere: bool = False  # buckets and volumes are those of the workers behind this one

    def of(self, request: GenerationRequest) -> "Delivery":
        """Return the delivery for `request`, with the caller's own bucket if they name one."""
        if request.s3Config is None or self.open_bucket is None:
            return self
        return replace(self, bucket=self.open_bucket(request.s3Config))

    async def check(self, output: OutputOptions, pools: Pools) -> None:
        """Refuse output that cannot be delivered, before it is generated. Raises InvalidRequest."""
        if self.is_done_elsewhere:
            return
        if self.bucket is not None:  # its address is looked up, which blocks
            await pools.uploads.run(self.bucket.check, place=self.bucket.host)
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

    async def deliver(self, result: JobResult, output: OutputOptions, job_id: str, pools: Pools) -> Answer:
        """Return the answer, within `max_bytes`. Artifacts that came encoded leave as they came.

        Encodes and uploads in threads of their own. Raises ResultTooLarge when nothing makes it fit, and JobTimeout at
        the deadline of the turn.
        """
        if all(isinstance(item, EncodedArtifact) for item in result.artifacts):  # which takes no time
            parcel = self._pack(result, output)
        else:
            parcel = await pools.encoding.run(self._pack, result, output)
        if parcel.target is None:
            return parcel.answer
        try:
            return await self._send(parcel, job_id, pools)
        except (SourceUnavailable, DiskFull) as error:  # made and paid for: not lost for that
            return await pools.encoding.run(self._pack_unsent, result, output, parcel, error)

    def _pack(self, result: JobResult, output: OutputOptions) -> "_Parcel":
        """Encode the result, and choose its way. Raises ResultTooLarge."""
        started = time.monotonic()
        format_ = output.format_of(video=result.artifacts[0].is_video)
        files = _files(result, format_, output.quality, metadata=output.metadata)
        notes: tuple[str, ...] = ()
        if format_ == "jpeg" and any(
            isinstance(item, Artifact) and item.raster.mode == "RGBA" for item in result.artifacts
        ):
            notes = ("JPEG has no transparency: what was transparent is white; png and webp keep it.",)
        answer = _answer(result, files, started, notes)
        if any(file.is_elsewhere for file in files):  # another worker has delivered them
            return _Parcel(answer, started, notes)
        if output.delivery == "stream":  # in parts, each of which fits
            return _Parcel(replace(answer, streamed=True), started, notes)
        if output.delivery != "base64" and not self.is_done_elsewhere:
            return _Parcel(answer, started, notes, output.delivery)
        if body_bytes(answer) <= self.max_bytes:
            return _Parcel(answer, started, notes)
        if self.bucket is None and answer.profile is not None and answer.profile.trace:
            note = f"With the trace of its profile the answer exceeds {self._limit}: the trace was left out."
            bare = replace(result, profile=replace(answer.profile, trace=b"", left_out=answer.profile.events))
            return self._pack(replace(bare, warnings=(*bare.warnings, note)), output)
        if self.bucket is not None:
            note = f"The {_noun(result)} exceed {self._limit} and were uploaded instead."
            return _Parcel(_answer(result, files, started, (*notes, note)), started, notes, "s3")
        return _Parcel(self._shrink(result, output, notes, started), started, notes)

    def _pack_unsent(self, result: JobResult, output: OutputOptions, parcel: "_Parcel", error: WorkerError) -> Answer:
        """Return what could not be uploaded in the answer itself. Raises ResultTooLarge."""
        if output.delivery == "base64":  # it was too large for that
            return self._shrink(result, output, (*parcel.notes, error.message), parcel.started)
        notes = (*parcel.notes, f"{error.message} The {_noun(result)} are in the answer itself.")
        answer = _answer(result, parcel.answer.files, parcel.started, notes)
        if body_bytes(answer) <= self.max_bytes:
            return answer
        return self._shrink(result, output, notes, parcel.started)

    async def _send(self, parcel: "_Parcel", job_id: str, pools: Pools) -> Answer:
        """Upload a parcel. Raises SourceUnavailable, DiskFull."""
        uploader = self.bucket if parcel.target == "s3" else self.volume
        if uploader is None:
            raise SourceUnavailable(f"No {'bucket' if parcel.target == 's3' else 'volume'} is configured.")
        return await pools.uploads.run(_put, uploader, parcel, job_id, place=uploader.host)

    async def elsewhere(self, answer: Answer, job_id: str, reason: str, pools: Pools) -> Answer | None:
        """Return an answer that was made already, with its files in the bucket or on the volume; None without either.

        `reason` is a sentence for the warnings: why they are not in the answer itself.
        """
        if not all(file.data for file in answer.files):  # they are elsewhere
            return None
        targets: tuple[tuple[Literal["s3", "volume"], str], ...] = (
            ("s3", "in the bucket"),
            ("volume", "on the volume"),
        )
        for target, place in targets:
            noun = "files are" if len(answer.files) > 1 else "file is"
            moved = replace(answer, warnings=(*answer.warnings, f"{reason} The {noun} {place} instead."))
            parcel = _Parcel(moved, time.monotonic() - answer.encode_s, (), target)
            with suppress(SourceUnavailable, DiskFull):
                return await self._send(parcel, job_id, pools)
        return None

    @property
    def _limit(self) -> str:
        return f"the {self.max_bytes / 1e6:g} MB that an answer may have here"

    def _shrink(self, result: JobResult, output: OutputOptions, notes: tuple[str, ...], started: float) -> Answer:
        """Return the answer in the first smaller encoding that fits. Raises ResultTooLarge."""
        video, noun = result.artifacts[0].is_video, _noun(result)
        format_ = output.format_of(video=video)
        encoded = any(isinstance(item, EncodedArtifact) for item in result.artifacts)
        for smaller, quality in () if encoded else _ladder(format_, output.quality, video=video):
            files = _files(result, smaller, quality, metadata=output.metadata)
            note = f"As {format_} the {noun} exceed {self._limit}; they were encoded as {smaller} (quality {quality})."
            answer = _answer(result, files, started, (*notes, note))
            if body_bytes(answer) <= self.max_bytes:
                return answer
        fewer = "fewer num_frames or a smaller size" if video else "fewer num_images or a smaller size"
        raise ResultTooLarge(
            f"The {noun} exceed {self._limit} in every format; ask for {fewer}, or let the operator configure a "
            "bucket.",
            field="num_frames" if video and len(result.artifacts) == 1 else "num_images",
            details={
                "max_bytes": self.max_bytes,
                "seeds": [item.seed for item in result.artifacts],
                **({"bucket": notes[-1]} if notes and self.bucket else {}),
            },
        )


@dataclass(frozen=True, slots=True)
class _Parcel:
    """An answer and where its files are to be uploaded; without a target it is sent as it is."""

    answer: Answer
    started: float
    notes: tuple[str, ...]
    target: Literal["s3", "volume"] | None = None


def _put(uploader: Uploader, parcel: _Parcel, job_id: str) -> Answer:
    """Upload the answer's files and return it with URLs or paths below the volume in place of bytes."""
    answer = parcel.answer
    locations = [
        uploader.put(f"{_folder(job_id)}/{index}.{file.format}", file.data, CONTENT_TYPES[file.format])
        for index, file in enumerate(answer.files)
    ]
    profile = answer.profile
    if profile is not None and profile.trace:
        place = uploader.put(f"{_folder(job_id)}/{TRACE_NAME}", profile.trace, TRACE_TYPE)
        is_url = parcel.target == "s3"
        profile = replace(profile, trace=b"", url=place if is_url else None, path=None if is_url else place)
    if parcel.target == "s3":
        files = tuple(AnswerFile(answer.format, url=url) for url in locations)
    else:
        files = tuple(AnswerFile(answer.format, path=path) for path in locations)
    return replace(answer, files=files, profile=profile, encode_s=time.monotonic() - parcel.started)


def _folder(job_id: str) -> str:
    """Return a folder name for a job: its id if that is safe in paths, else the safe part of it and a digest."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:64]
    return (
        safe if safe == job_id else f"{safe[:48]}_{hashlib.sha256(job_id.encode('utf-8', 'replace')).hexdigest()[:12]}"
    )


def _files(result: JobResult, format_: Format, quality: int, *, metadata: bool) -> tuple[AnswerFile, ...]:
    files: list[AnswerFile] = []
    for item in result.artifacts:
        if isinstance(item, EncodedArtifact):
            files += item.files
            continue
        comment = comment_on(result, item) if metadata else None
        if item.is_video and format_ not in FRAME_FORMATS:
            files.append(AnswerFile(format_, encode_video(item.frames, item.fps, format_, quality, comment)))
        else:
            images = item.frames or (item.raster,)
            files += [AnswerFile(format_, encode(image, format_, quality, comment)) for image in images]
    return tuple(files)


def _answer(result: JobResult, files: tuple[AnswerFile, ...], started: float, notes: tuple[str, ...]) -> Answer:
    first = result.artifacts[0]
    facts = {item.name: getattr(result, item.name) for item in fields(JobFacts)}
    return Answer(
        **facts | {"warnings": (*result.warnings, *notes)},
        files=files,
        format=files[0].format,
        seeds=tuple(item.seed for item in result.artifacts),
        width=first.width,
        height=first.height,
        num_frames=first.num_frames,
        fps=first.fps,
        encode_s=time.monotonic() - started,
    )


def _noun(result: JobResult) -> str:
    return "videos" if result.artifacts[0].is_video else "images"


def _ladder(format_: Format, quality: int, *, video: bool) -> list[tuple[Format, int]]:
    """List the formats and qualities that are smaller than those that did not fit."""
    if video and format_ in FRAME_FORMATS:
        return [step for step in _SMALLER_FRAMES if format_ != "jpeg" or step[1] < quality]
    if video:
        return [step for step in _SMALLER_VIDEO if format_ != "mp4" or step[1] < quality]
    order = ("png", "webp", "jpeg")
    return [step for step in _SMALLER if order.index(step[0]) >= order.index(format_)]
