"""Videos in and out: frames, size and pace survive; what is damaged, too long or no video is refused."""

import base64
import io
import struct

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
    ("data", "says"),
    [
        (b"", "not a readable MP4, GIF or WebP video"),
        (b"\0\0\0\x18ftypisom" + bytes(64), "not a readable MP4, GIF or WebP video"),
        (b"hello", "text, which is not read here"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "text, which is not read here"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "text, which is not read here"),
        (b"RIFF\x10\0\0\0AVI LIST", "an AVI video, which is not read here; send an MP4"),
        (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"<!DOCTYPE html><title>Not found</title>", "a web page"),
    ],
)
def test_what_is_no_video_is_refused_by_its_name(data, says):
    with pytest.raises(InvalidImage, match=f"^video is {says}"):
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


def rotated(mp4: bytes, quarters: int) -> bytes:
    """An MP4 with the matrix that a phone writes: turned clockwise by so many quarters when it is shown."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    at = mp4.index(b"tkhd") + 4 + 40
    return mp4[:at] + matrix + mp4[at + 36 :]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_phones_video_stands_upright(quarters):
    image = Image.new("RGB", (64, 48), (20, 20, 20))
    image.paste((230, 40, 40), (0, 0, 32, 24))
    image.paste((40, 40, 230), (32, 0, 64, 24))
    sent = [Raster("RGB", 64, 48, image.tobytes())] * 3
    decoded = decode_video(rotated(encode_video(sent, 8, "mp4", 95), quarters))
    shown = image.rotate(-90 * quarters, expand=True)
    expected = Raster("RGB", *shown.size, shown.tobytes())
    assert {(frame.width, frame.height) for frame in decoded.frames} == {shown.size}
    assert max(difference(frame, expected) for frame in decoded.frames) < 8


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_transparency_is_white_as_in_images(format_):
    images = []
    for index in range(3):
        image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
        image.paste((200, 30, 30, 255), (10 * index, 0, 10 * index + 20, 48))
        images.append(image)
    out = io.BytesIO()
    options = {"lossless": True} if format_ == "WEBP" else {"disposal": 2} if format_ == "GIF" else {}
    if format_ == "PNG":  # a list of images
        files = [io.BytesIO() for _ in images]
        for image, file in zip(images, files, strict=True):
            image.save(file, "PNG")
        decoded = read_video([text(file.getvalue()) for file in files], never)
    else:
        images[0].save(out, format_, save_all=True, append_images=images[1:], duration=100, **options)
        decoded = decode_video(out.getvalue())
    for index, frame in enumerate(decoded.frames):
        shown = Image.frombytes("RGB", (64, 48), frame.data)
        assert shown.getpixel((50, 20)) == (255, 255, 255)
        assert shown.getpixel((10 * index + 5, 20)) == pytest.approx((200, 30, 30), abs=3)


def test_transparency_of_a_masks_video_is_kept():
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 20, 48))
    out = io.BytesIO()
    image.save(out, "PNG")
    frames_ = read_video([text(out.getvalue())] * 2, never, "mask_video", alpha=True).frames
    assert [frame.mode for frame in frames_] == ["RGBA"] * 2


@pytest.mark.parametrize(("fps", "count", "kept"), [(240, 48, 12), (120, 11, 6), (100, 10, 6), (61, 6, 6)])
def test_more_than_sixty_frames_a_second_are_brought_to_sixty(fps, count, kept):
    decoded = decode_video(encode_video(frames(count, 8 * count + 16, 32), fps, "mp4", 95))
    assert (len(decoded.frames), decoded.fps) == (kept, 60)
    (note,) = decoded.notes
    assert note == f"video has {fps} frames a second; {kept} of its {count} frames are used, 60 a second."
    sent = frames(count, 8 * count + 16, 32)
    for index, frame in enumerate(decoded.frames):
        assert difference(frame, sent[int(index * fps / 60)]) < 4


def test_a_slow_slide_show_is_told_to_be_faster():
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=4_000)
    decoded = decode_video(out.getvalue())
    assert (decoded.fps, decoded.notes) == (1, ("video has 0.25 frames a second; it is played at 1.",))
