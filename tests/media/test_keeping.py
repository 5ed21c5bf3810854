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
from worker.media.keeping import kept, kept_frames


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
    waiting = kept(raster, source, alpha=True)
    assert isinstance(waiting, KeptRaster)
    assert (waiting.mode, waiting.width, waiting.height) == (mode, 1_500, 1_500)
    assert waiting.data == raster.data
    assert kept(waiting, None) is waiting


def test_an_image_that_no_file_holds_is_packed():
    raster = decode_image(png("RGB")).raster
    waiting = kept(raster, None)
    assert isinstance(waiting, KeptRaster)
    assert waiting.data == raster.data
    assert sys.getsizeof(waiting._restore.args[0]) < len(raster.data) / 10


def test_a_small_image_stays_as_it_is():
    raster = decode_image(png("RGB", (1_448, 1_448))).raster
    assert kept(raster, None) is raster


def test_many_frames_are_packed_and_each_of_them_once(monkeypatch):
    frames = [Raster("L", 2, 2, bytes([shade] * 4)) for shade in range(3)]
    frames.append(frames[-1])
    assert kept_frames(frames) == tuple(frames)
    monkeypatch.setattr(keeping, "MAX_FRAMES_PIXELS", 11)
    waiting = kept_frames(frames)
    assert [frame.data for frame in waiting] == [frame.data for frame in frames]
    assert waiting[2] is waiting[3]
    assert kept_frames(waiting) == waiting


def test_two_jobs_with_one_image_share_a_call_and_two_images_do_not():
    data = png("RGB")
    one, same, other = (kept(decode_image(file).raster, file) for file in (data, data, png("RGB", (1_500, 1_501))))
    assert fingerprint([one]) == fingerprint([same]) != fingerprint([other])
    assert fingerprint([one]) != fingerprint([kept(decode_image(data).raster, data, alpha=True)])
