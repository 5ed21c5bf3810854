"""Videos in and out: frames, size and pace survive; what is damaged, too long or no video is refused."""

import base64
import io

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from worker.core.errors import InvalidImage
from worker.core.image import Raster
from worker.media import video
from worker.media.video import decode_video, encode_video, read_video


def frames(count=6, width=64, height=48):
    """Bars that walk to the right, so that every frame differs."""
    found = []
    for index in range(count):
        image = Image.new("RGB", (width, height), (20, 60, 120))
        image.paste((240, 200, 40), (8 * index, 0, 8 * index + 8, height))
        found.append(Raster("RGB", width, height, image.tobytes()))
    return found


def difference(first, second):
    return sum(abs(a - b) for a, b in zip(first.data, second.data, strict=True)) / len(first.data)


def text(data):
    return base64.b64encode(data).decode()


def never(url, max_bytes):
    raise AssertionError("nothing may be fetched")


@pytest.mark.parametrize(("format_", "within"), [("mp4", 4), ("gif", 4), ("webp", 4)])
def test_what_is_encoded_can_be_read_again(format_, within):
    sent = frames()
    data = encode_video(sent, 10, format_, 92)
    decoded = decode_video(data)
    assert (len(decoded.frames), decoded.fps) == (6, 10)
    assert {(frame.width, frame.height) for frame in decoded.frames} == {(64, 48)}
    assert max(difference(a, b) for a, b in zip(decoded.frames, sent, strict=True)) < within
    assert encode_video(sent, 10, format_, 92) == data


@pytest.mark.parametrize("fps", [1, 7, 12.5, 24, 60])
def test_an_mp4_plays_at_the_pace_that_was_asked_for(fps):
    with av.open(io.BytesIO(encode_video(frames(), fps, "mp4", 80))) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps)
        assert stream.codec_context.name == "h264"
        assert len(container.streams) == 1


def test_quality_decides_the_size():
    noise = [Raster("RGB", 64, 64, bytes((i * j * 31 + i) % 251 for j in range(64 * 64 * 3))) for i in range(1, 4)]
    for format_ in ("mp4", "webp"):
        assert len(encode_video(noise, 8, format_, 20)) < len(encode_video(noise, 8, format_, 95)) / 2


def test_an_odd_side_loses_a_pixel_and_a_channel_of_alpha_its_meaning():
    odd = [Raster("RGBA", 33, 17, bytes([10, 200, 30, 255]) * (33 * 17))]
    (frame,) = decode_video(encode_video(odd, 8, "mp4", 90)).frames
    assert (frame.mode, frame.width, frame.height) == ("RGB", 32, 16)


def test_a_list_of_images_is_a_video():
    images = []
    for frame in frames(3):
        out = io.BytesIO()
        Image.frombytes("RGB", (64, 48), frame.data).save(out, "PNG")
        images.append(text(out.getvalue()))
    decoded = read_video(images, never)
    assert list(decoded.frames) == frames(3)
    assert decoded.fps is None
    assert read_video(images[:1], never).frames == (frames(1)[0],)
    with pytest.raises(InvalidImage, match="different sizes"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "PNG")
        read_video([*images, text(out.getvalue())], never)


def test_a_url_is_fetched_through_the_guard_and_only_there():
    asked = []

    def fetch(url, max_bytes):
        asked.append((url, max_bytes))
        return encode_video(frames(2), 8, "gif", 80)

    assert len(read_video(["https://example.com/a.gif"], fetch).frames) == 2
    assert asked == [("https://example.com/a.gif", video.MAX_BYTES)]

    def refuse(url, max_bytes):
        raise InvalidImage("its host is not a public one", field="image")

    with pytest.raises(InvalidImage) as failure:
        read_video(["https://example.com/a.mp4"], refuse, "pose_video")
    assert failure.value.field == "pose_video"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\0\0\0\x18ftypisom" + bytes(64),
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"RIFF\x10\0\0\0AVI LIST",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_what_is_no_video_is_refused(data):
    with pytest.raises(InvalidImage, match="video is not a readable MP4, GIF or WebP video"):
        decode_video(data)


def test_limits_are_kept_while_decoding(monkeypatch):
    data = encode_video(frames(6), 8, "mp4", 80)
    for limit, value, said in (
        ("MAX_FRAMES", 5, "more than 5 frames"),
        ("MAX_SIDE", 63, "at most 63 pixels a side"),
        ("MAX_PIXELS", 64 * 48 * 5, "pixels in all its frames"),
        ("MAX_BYTES", 100, "over 0 MB"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(video, limit, value)
            for format_ in ("mp4", "gif"):
                again = data if format_ == "mp4" else encode_video(frames(6), 8, "gif", 80)
                with pytest.raises(InvalidImage, match=said):
                    decode_video(again)
    with pytest.raises(InvalidImage, match="1 to 257 frames; 258 were sent"):
        read_video(["x"] * 258, never)


_MP4 = encode_video(frames(3, 32, 32), 8, "mp4", 60)


@given(st.integers(0, len(_MP4) - 1), st.integers(1, 255), st.booleans())
def test_damage_is_refused_or_read_and_nothing_else(position, change, cut):
    broken = bytearray(_MP4)
    broken[position] ^= change
    try:
        decoded = decode_video(bytes(broken[:position] if cut else broken))
    except InvalidImage as error:
        assert error.field == "video"
    else:
        assert decoded.frames
