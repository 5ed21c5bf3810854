"""Videos into answers that fit: as one file or as frames, made smaller or uploaded."""

import base64
import io
import json
from pathlib import Path

import av
import pytest
from PIL import ExifTags, Image

from tests.fakes.engine import FakeEngine, make_context
from tests.service.jobs.delivering import bucket_settings, files, noise
from worker.core.errors import InvalidRequest, ResultTooLarge
from worker.core.job import Batch
from worker.core.model import ModelFiles
from worker.service.local.provisioning import Provisioner


def noisy_video(tmp_path, limit_mb, **settings):
    return make_context(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


FILM = {"model": "video", "width": 128, "height": 128, "num_frames": 9}


@pytest.fixture
def declared(monkeypatch):
    """The shelf's video model is only declared: its files are never looked for."""

    def provide(self, job, emit):
        return Batch((job,), ModelFiles(root=Path(), total_bytes=0))

    monkeypatch.setattr(Provisioner, "provide", provide)


async def test_a_video_is_an_mp4_in_place_of_an_image(tmp_path, declared):
    answer = await noisy_video(tmp_path, 9.5).draw(**FILM, num_images=2)
    assert (answer["format"], answer["num_frames"], answer["fps"]) == ("mp4", 9, 8.0)
    assert len(answer["videos"]) == 2
    assert not {"image", "images", "video"} & answer.keys()
    assert base64.b64decode(answer["videos"][0])[4:8] == b"ftyp"
    assert answer["usage"]["pixel_steps"] == 128 * 128 * 50 * 9 * 2


@pytest.mark.parametrize(("format_", "magic"), [("gif", b"GIF8"), ("webp", b"RIFF"), ("mp4", b"\0\0\0")])
async def test_a_video_comes_in_the_format_asked_for(tmp_path, declared, format_, magic):
    answer = await noisy_video(tmp_path, 9.5).draw(**FILM, output={"format": format_}, fps=5)
    assert (answer["format"], answer["fps"]) == (format_, 5)
    data = base64.b64decode(answer["video"])
    assert data.startswith(magic)
    if format_ != "mp4":
        assert Image.open(io.BytesIO(data)).n_frames == 9


async def test_a_video_over_the_limit_loses_quality_and_it_says_so(tmp_path, declared):
    whole = len((await noisy_video(tmp_path, 9.5).draw(**FILM, seed=1))["video"])
    context = noisy_video(tmp_path, whole * 0.8 / 1e6)
    answer = await context.draw(**FILM, seed=1)
    assert answer["format"] == "mp4"
    assert len(json.dumps({"output": answer}, ensure_ascii=False).encode()) <= whole * 0.8
    assert "As mp4 the videos exceed" in answer["warnings"][0]
    with pytest.raises(ResultTooLarge, match="ask for fewer num_frames") as failure:
        await noisy_video(tmp_path, 0.02).draw(**FILM)
    assert failure.value.field == "num_frames"


async def test_a_video_can_be_uploaded(tmp_path, bucket, declared):
    context = noisy_video(tmp_path, 9.5, **bucket_settings(bucket))
    answer = await context.draw(**FILM, output={"delivery": "s3"})
    assert answer["video_url"] == answer["video"]
    ((_, stored),) = bucket.objects.items()
    assert stored.content_type == "video/mp4"


async def test_a_video_can_come_as_its_frames(tmp_path, declared):
    context = make_context(tmp_path)
    answer = await context.draw(**FILM, num_images=2, output={"format": "png"})
    assert (answer["format"], answer["num_frames"], answer["fps"], len(answer["images"])) == ("png", 9, 8.0, 18)
    assert not {"image", "video", "videos"} & answer.keys()
    assert len(answer["seeds"]) == 2
    sizes = {Image.open(io.BytesIO(base64.b64decode(image))).size for image in answer["images"]}
    assert sizes == {(128, 128)}


async def test_frames_that_do_not_fit_are_encoded_smaller_or_uploaded(tmp_path, bucket, declared):
    answer = await noisy_video(tmp_path, 0.4).draw(**FILM, output={"format": "png"})
    assert (answer["format"], len(answer["images"])) == ("jpeg", 9)
    assert "encoded as jpeg" in answer["warnings"][-1]
    sent = await noisy_video(tmp_path, 9.5, **bucket_settings(bucket)).draw(
        **FILM, output={"format": "jpeg", "delivery": "s3"}
    )
    assert sent["image_url"] == sent["images"][0]
    assert {stored.content_type for stored in bucket.objects.values()} == {"image/jpeg"}
    assert len(bucket.objects) == 9


@pytest.mark.parametrize(("model", "format_"), [("tiny", "mp4"), ("tiny", "gif")])
async def test_a_format_of_the_other_kind_is_refused_before_drawing(tmp_path, model, format_):
    context = make_context(tmp_path)
    with pytest.raises(InvalidRequest, match=f"{format_} is not for") as failure:
        await context.draw(model=model, output={"format": format_})
    assert failure.value.field == "output"
    assert context.builder.built == 0


@pytest.mark.parametrize("format_", ["mp4", "gif", "webp"])
async def test_a_video_says_how_it_was_made_too(tmp_path, declared, format_):
    context = make_context(tmp_path)
    answer = await context.draw(**FILM, prompt="canary", output={"metadata": True, "format": format_})
    data = base64.b64decode(answer["video"])
    if format_ == "mp4":
        with av.open(io.BytesIO(data)) as container:
            text = container.metadata["comment"]
    elif format_ == "gif":
        text = Image.open(io.BytesIO(data)).info["comment"].decode()
    else:
        exif = Image.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.Exif)
        text = exif[ExifTags.Base.UserComment].decode("utf-16-be", "replace")
    assert "canary" in text
    assert f"Seed: {answer['seed']}" in text
    silent = await context.draw(**FILM, prompt="canary", output={"format": format_})
    assert b"canary" not in base64.b64decode(silent["video"])


async def test_metadata_of_a_videos_frames_says_how_many_there_are(tmp_path, declared):
    answer = await make_context(tmp_path).draw(**FILM, output={"metadata": True, "format": "png"})
    text = Image.open(io.BytesIO(files(answer)[0])).text["generation"]
    assert json.loads(text)["input"]["num_frames"] == FILM["num_frames"]
