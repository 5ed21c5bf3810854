"""Large images of jobs that wait: the same pixels later, in less room."""

import base64
import io
import sys

import pytest
from PIL import Image

from worker.core.fingerprint import fingerprint
from worker.core.image import KeptRaster, Raster
from worker.media import keeping
from worker.media.decoding import decode_image
from worker.media.keeping import Room, kept, kept_frames


def png(mode: str, size: tuple[int, int] = (1_500, 1_500)) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_large_image_comes_back_to_the_byte(mode, as_text):
    data = png(mode)
    raster = decode_image(data, alpha=True).raster
    source = base64.b64encode(data).decode() if as_text else data
    waiting = kept(raster, source, Room(), alpha=True)
    assert isinstance(waiting, KeptRaster)
    assert (waiting.mode, waiting.width, waiting.height) == (mode, 1_500, 1_500)
    assert waiting.data == raster.data
    assert kept(waiting, None, Room()) is waiting


def test_an_image_that_no_file_holds_is_packed():
    raster = decode_image(png("RGB")).raster
    waiting = kept(raster, None, Room())
    assert isinstance(waiting, KeptRaster)
    assert waiting.data == raster.data
    assert sys.getsizeof(waiting._restore.args[0]) < len(raster.data) / 10


def test_a_small_image_stays_as_it_is():
    raster = decode_image(png("RGB", (1_448, 1_448))).raster
    assert kept(raster, None, Room()) is raster


def test_many_frames_are_packed_and_each_of_them_once(monkeypatch):
    frames = [Raster("L", 2, 2, bytes([shade] * 4)) for shade in range(3)]
    frames.append(frames[-1])
    assert kept_frames(frames, Room()) == tuple(frames)
    monkeypatch.setattr(keeping, "MAX_FRAMES_PIXELS", 11)
    waiting = kept_frames(frames, Room())
    assert [frame.data for frame in waiting] == [frame.data for frame in frames]
    assert waiting[2] is waiting[3]
    assert kept_frames(waiting, Room()) == waiting


def test_two_jobs_with_one_image_share_a_call_and_two_images_do_not():
    data = png("RGB")
    one, same, other = (
        kept(decode_image(file).raster, file, Room()) for file in (data, data, png("RGB", (1_500, 1_501)))
    )
    assert fingerprint([one]) == fingerprint([same]) != fingerprint([other])
    assert fingerprint([one]) != fingerprint([kept(decode_image(data).raster, data, Room(), alpha=True)])


def test_of_all_jobs_together_so_much_waits_as_it_is_and_the_rest_is_packed():
    room = Room(3 * 100 * 100 * 4)
    waiting = [kept(Raster("RGB", 100, 100, bytes([shade]) * 30_000), None, room) for shade in range(6)]
    assert [isinstance(image, KeptRaster) for image in waiting] == [False] * 4 + [True] * 2
    assert [image.data for image in waiting] == [bytes([shade]) * 30_000 for shade in range(6)]
    assert kept(waiting[0], None, room) is waiting[0], "it has its room already"
    frames = kept_frames([Raster("L", 100, 100, bytes(10_000))] * 3, room)
    assert isinstance(frames[0], KeptRaster)
    waiting.clear()
    assert room.left == 3 * 100 * 100 * 4
    frame = Raster("L", 100, 100, bytes(10_000))
    assert kept_frames([frame] * 3, room) == (frame,) * 3
    assert room.left == 3 * 100 * 100 * 4 - 10_000
