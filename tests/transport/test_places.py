"""Transparent images in each format, and results on the worker's volume instead of in the answer."""

import base64
import io

import pytest
from PIL import Image

from tests.answers import files_of
from tests.fakes.engine import FakeEngine, make_context
from worker.core.errors import InvalidRequest
from worker.core.image import Raster

MAGIC = {"png": b"\x89PNG", "webp": b"RIFF"}


def files(answer):
    return [base64.b64decode(text, validate=True) for text in files_of(answer)]


def see_through(job, seed):
    """Half of it transparent, and black there."""
    return Raster("RGBA", 32, 32, (bytes(4) * 16 + bytes([200, 30, 30, 255]) * 16) * 32)


@pytest.mark.parametrize("format_", ["png", "webp"])
async def test_alpha_is_kept_where_the_format_has_it(tmp_path, format_):
    answer = await make_context(tmp_path, FakeEngine(see_through)).draw(output={"format": format_, "quality": 100})
    image = Image.open(io.BytesIO(files(answer)[0]))
    assert image.mode == "RGBA"
    assert (image.getpixel((2, 2))[3], image.getpixel((30, 2))[3]) == (0, 255)
    assert answer["warnings"] == []


async def test_jpeg_shows_white_through_and_says_so(tmp_path):
    answer = await make_context(tmp_path, FakeEngine(see_through)).draw(output={"format": "jpeg"})
    image = Image.open(io.BytesIO(files(answer)[0]))
    assert min(image.getpixel((2, 2))) > 245
    assert len(answer["warnings"]) == 1
    assert "transparen" in answer["warnings"][0]


async def test_results_on_the_volume_have_paths_below_it(tmp_path):
    context = make_context(tmp_path, FakeEngine(), volume_dir=tmp_path / "volume")
    answer = await context.draw(num_images=2, output={"delivery": "volume", "format": "webp"})
    assert answer["image_path"] == answer["images"][0]
    for place in answer["images"]:
        assert place.startswith("outputs/")
        assert (tmp_path / "volume" / place).read_bytes().startswith(MAGIC["webp"])
    folder = (tmp_path / "volume" / answer["images"][0]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["0.webp", "1.webp"]


@pytest.mark.parametrize("job_id", ["../../escape", "/etc/cron.d/x", "a/b", "..", "", "ü" * 300, "a\0b", "CON"])
async def test_no_job_id_leads_out_of_the_outputs_folder(tmp_path, job_id):
    context = make_context(tmp_path, FakeEngine(), volume_dir=tmp_path / "volume")
    answer = await context.ask(job_id, prompt="x", output={"delivery": "volume"})
    path = (tmp_path / "volume" / answer["image"]).resolve()
    assert path.is_file()
    assert path.parent.parent == (tmp_path / "volume/outputs").resolve()
    assert not (tmp_path / "escape").exists()


async def test_a_volume_that_cannot_be_written_costs_no_image(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/outputs").write_text("in the way")
    answer = await make_context(tmp_path, FakeEngine(), volume_dir=tmp_path / "volume").draw(
        output={"delivery": "volume"}
    )
    assert files(answer)[0].startswith(MAGIC["png"])
    assert "volume" in answer["warnings"][0]
    assert str(tmp_path) not in answer["warnings"][0]


async def test_without_a_volume_it_is_refused_before_anything_is_drawn(tmp_path):
    engine = FakeEngine()
    context = make_context(tmp_path, engine, volume_dir=None)
    with pytest.raises(InvalidRequest, match="VOLUME_DIR") as failure:
        await context.draw(output={"delivery": "volume"})
    assert failure.value.field == "output"
    assert engine.ran == []
