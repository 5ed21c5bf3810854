"""Videos from callers, checked before and while they are decoded; videos to callers, the same bytes every time.

PyAV and numpy are imported where they are used: few workers ever see a video, and the two would take a quarter of the
import.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from PIL import Image, ImageSequence

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.core.request import MAX_FRAMES, Format
from worker.media.decoding import decode_image, opaque, showing_gaps
from worker.media.images import Comment, exif_of, read_bytes, read_image
from worker.media.kinds import VIDEO, WEB_PAGE, kind_of

MAX_BYTES = 64 * 2**20
MAX_SIDE = 4_096
MAX_PIXELS = 2**28  # of all frames together: 800 MB once decoded
_ANIMATED = ("GIF", "WEBP")
MOVING = (VIDEO, "GIF", "WebP", None)  # the kinds of files that may hold many frames
_STILL = ("PNG", "JPEG", "AVIF", "BMP", "TIFF")
MAX_FPS = 60
_BT709 = 1  # ffmpeg's number for its primaries, transfer and matrix


@dataclass(frozen=True, slots=True)
class Video:
    """A video's frames, all of one size. `fps` is None if the source declares none. `notes` are for its sender."""

    frames: tuple[Raster, ...]
    fps: float | None = None
    notes: tuple[str, ...] = ()


# What this worker made itself.
Given = Raster | Video


def read_video(
    texts: Sequence[str], fetch: Callable[[str, int], bytes], field: str = "video", *, alpha: bool = False
) -> Video:
    """Read one MP4, GIF or WebP as base64, data: URI or https URL, or images. Raises InvalidImage naming `field`.

    Transparent parts become white, unless `alpha` is kept. `fetch(url, max_bytes)` is the guarded GET; it is the only
    way out.
    """
    if len(texts) == 1:
        data = read_bytes(texts[0], fetch, field, MAX_BYTES)
        if kind_of(data) not in _STILL:
            return decode_video(data, field, alpha=alpha)
        image = decode_image(data, field, alpha=alpha)
        return Video((image.raster,), notes=image.notes)
    if not 1 <= len(texts) <= MAX_FRAMES:
        raise InvalidImage(f"{field} must have 1 to {MAX_FRAMES} frames; {len(texts)} were sent.", field=field)
    frames: list[Raster] = []
    for item in texts:
        frames.append(read_image(item, fetch, field, alpha=alpha).raster)
        _check(frames[0].width, frames[0].height, len(frames), field)
        if (frames[-1].width, frames[-1].height) != (frames[0].width, frames[0].height):
            raise InvalidImage(f"{field} has frames of different sizes; send them all alike.", field=field)
    return Video(tuple(frames))


def decode_video(data: bytes, field: str = "video", *, alpha: bool = False) -> Video:
    """Decode MP4, GIF or WebP bytes, upright, and at most 60 frames a second of them.

    Transparent parts become white, unless `alpha` is kept. Raises InvalidImage: damaged, too large, too long, or of
    another format.
    """
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"{field} is over {MAX_BYTES >> 20} MB; send a shorter video.", field=field)
    kind = kind_of(data)
    try:
        frames, fps = _decode_mp4(data, field, alpha) if kind == VIDEO else _decode_animated(data, field, alpha)
    except InvalidImage:
        raise
    except Exception:  # decoders raise anything on hostile bytes
        frames, fps = [], None
    if not frames:
        raise InvalidImage(f"{field} is {_fault(kind)}", field=field) from None
    return _paced(frames, fps, field)


def encode_video(
    frames: Sequence[Raster], fps: float, format_: Format, quality: int, comment: Comment | None = None
) -> bytes:
    """Encode frames as an MP4 (H.264), GIF or WebP file. The same frames give the same bytes. `quality` is 1..100.

    The comment's text is MP4's and GIF's own comment, and WebP's EXIF.
    """
    if format_ == "mp4":
        return _encode_mp4(frames, fps, quality, comment)
    images = [Image.frombytes(frame.mode, (frame.width, frame.height), frame.data).convert("RGB") for frame in frames]
    # GIF counts in hundredths of a second, and viewers slow down frames shorter than two of them.
    duration = max(20, round(100 / fps) * 10) if format_ == "gif" else max(1, round(1000 / fps))
    out = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": duration, "loop": 0}
    if format_ == "gif":
        comment_options = {"comment": comment.text.encode()} if comment else {}
        images[0].save(out, "GIF", **options, **comment_options)
    else:
        images[0].save(out, "WEBP", quality=quality, method=2, **options, **exif_of(comment))
    return out.getvalue()


def _paced(frames: Sequence[Raster], fps: float | None, field: str) -> Video:
    """Return a video of 1 to 60 frames a second, of which too many were left out evenly: it lasts as long as before."""
    if fps is None or 1 <= fps <= MAX_FPS:
        return Video(tuple(frames), fps)
    if fps < 1:
        return Video(tuple(frames), 1.0, (f"{field} has {fps:.2g} frames a second; it is played at 1.",))
    kept = [frames[int(index * fps / MAX_FPS)] for index in range(max(1, round(len(frames) * MAX_FPS / fps)))]
    note = (
        f"{field} has {fps:.4g} frames a second; {len(kept)} of its {len(frames)} frames are used, {MAX_FPS} a second."
    )
    return Video(tuple(kept), float(MAX_FPS), (note,))


def _fault(kind: str | None) -> str:
    """Return the reason why a file of this kind is not read as a video, with the way out."""
    if kind == WEB_PAGE:
        return f"{WEB_PAGE}, not a video; send the video itself, or the URL of its file."
    if kind is None or kind in (VIDEO, "GIF", "WebP"):
        return "not a readable MP4, GIF or WebP video; send the whole file, or an MP4 with H.264."
    return f"{kind}, which is not read here; send an MP4, GIF or WebP."


def _check(width: int, height: int, frames: int, field: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise InvalidImage(f"{field} is {width}x{height}; at most {MAX_SIDE} pixels a side are taken.", field=field)
    if frames > MAX_FRAMES:
        raise InvalidImage(f"{field} has more than {MAX_FRAMES} frames; send a shorter one.", field=field)
    if width * height * frames > MAX_PIXELS:
        raise InvalidImage(
            f"{field} has more than {MAX_PIXELS:,} pixels in all its frames; send a shorter or smaller one.",
            field=field,
        )


def _decode_mp4(data: bytes, field: str, alpha: bool) -> tuple[list[Raster], float | None]:
    import av
    import numpy as np

    frames: list[Raster] = []
    # The format is named, and with it no other file can be asked for: a playlist or a reference would be read as video.
    options = {"enable_drefs": "0", "use_absolute_path": "0"}
    with av.open(io.BytesIO(data), "r", format="mov", options=options) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        _check(stream.width, stream.height, 1, field)
        rate = float(stream.average_rate) if stream.average_rate else None
        for frame in container.decode(stream):
            # A stream may change its size midway: only the first one was checked.
            _check(frame.width, frame.height, len(frames) + 1, field)
            has_alpha = any(component.is_alpha for component in frame.format.components)
            layout = "rgba" if has_alpha else "rgb24"
            pixels = frame.to_ndarray(format=layout, width=stream.width, height=stream.height)
            # A phone's video lies on its side, with a matrix that says how to turn it. Only quarters are turned.
            turned = np.rot90(pixels, round(frame.rotation / 90))
            frames.append(_to_raster(Image.fromarray(turned), alpha))
    return frames, rate


def _to_raster(image: Image.Image, alpha: bool) -> Raster:
    """Return a frame as RGB on white, or as RGBA with `alpha` if it has it."""
    if image.mode != "RGB" and not (alpha and image.mode == "RGBA"):
        image = opaque(image)
    mode: Literal["RGB", "RGBA"] = "RGBA" if image.mode == "RGBA" else "RGB"
    return Raster(mode, image.width, image.height, image.tobytes())


def _decode_animated(data: bytes, field: str, alpha: bool) -> tuple[list[Raster], float | None]:
    frames: list[Raster] = []
    milliseconds = 0.0
    with Image.open(io.BytesIO(showing_gaps(data)), formats=_ANIMATED) as image:
        _check(image.width, image.height, 1, field)
        for frame in ImageSequence.Iterator(image):
            _check(frame.width, frame.height, len(frames) + 1, field)
            frames.append(_to_raster(frame.convert("RGBA") if frame.has_transparency_data else frame, alpha))
            milliseconds += float(frame.info.get("duration", 0))
    return frames, 1000 * len(frames) / milliseconds if milliseconds > 0 else None


def _encode_mp4(frames: Sequence[Raster], fps: float, quality: int, comment: Comment | None) -> bytes:
    import av
    import numpy as np
    from av.video.reformatter import Colorspace

    # 4:2:0 has one colour for two pixels each way; every family's grid is even, so nothing is lost in practice.
    width, height = frames[0].width // 2 * 2 or 2, frames[0].height // 2 * 2 or 2
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        if comment is not None:
            container.metadata["comment"] = comment.text
        codec = _h264()
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        # More threads would cut the image elsewhere on another machine.
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if codec == "libx264":
            # x264's lookahead can decide otherwise from run to run (seen with 2 of 14); without these two it does not.
            options = {"preset": "medium", "flags": "+bitexact", "x264-params": "mbtree=0:bframes=0"}
            context.options = options | {"crf": str(round(46 - 0.3 * quality))}
        else:
            context.options = {"qscale": str(round(31 - 0.29 * quality)), "flags": "+bitexact"}
        for raster in frames:
            image = Image.frombytes(raster.mode, (raster.width, raster.height), raster.data).convert("RGB")
            pixels = np.asarray(image.crop((0, 0, width, height)))  # beyond the image, black
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
    return out.getvalue()


def _h264() -> str:
    """Return the encoder whose videos every browser reads; FFmpeg builds without x264 still have MPEG-4."""
    import av

    return "libx264" if "libx264" in av.codecs_available else "mpeg4"
