"""Pictures into answers that fit: measured as sent, uploaded where there is a bucket, never lost without a word."""

import base64
import io
import json
import random
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes.bucket import FakeBucket
from tests.fakes.engine import FakeEngine, make_desk
from worker.core.errors import InvalidRequest, ResultTooLarge
from worker.core.image import Raster
from worker.core.job import Batch
from worker.core.model import ModelFiles
from worker.service.provisioning import Provisioner
from worker.transport.delivery import body_bytes

MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


def noise(job, seed):
    """A picture that no lossless format makes smaller."""
    return Raster("RGB", 128, 128, random.Random(seed).randbytes(128 * 128 * 3))


def noisy(tmp_path, limit_mb, **settings):
    return make_desk(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


def bucket_settings(bucket):
    return {
        "bucket_endpoint_url": bucket.endpoint,
        "bucket_name": "pictures",
        "bucket_access_key_id": "test-access",
        "bucket_secret_access_key": "test-secret",
    }


def files(answer):
    return [base64.b64decode(text, validate=True) for text in answer["images"]]


@pytest.fixture
def bucket():
    with FakeBucket() as server:
        yield server


async def test_pictures_that_fit_are_left_alone(tmp_path):
    answer = await noisy(tmp_path, 9.5).draw(num_images=2)
    assert answer["format"] == "png"
    assert answer["warnings"] == []
    assert all(data.startswith(MAGIC["png"]) for data in files(answer))


@pytest.mark.parametrize(("limit_mb", "format_"), [(0.4, "webp"), (0.16, "jpeg")])
async def test_eight_pictures_over_the_limit_are_encoded_smaller_and_it_says_so(tmp_path, limit_mb, format_):
    answer = await noisy(tmp_path, limit_mb).draw(num_images=8)
    assert answer["format"] == format_
    assert len(json.dumps(answer).encode()) <= limit_mb * 1e6
    assert [data[: len(MAGIC[format_])] for data in files(answer)] == [MAGIC[format_]] * 8
    assert len(answer["warnings"]) == 1
    assert f"encoded as {format_}" in answer["warnings"][0]
    assert "As png" in answer["warnings"][0]


async def test_what_fits_in_no_format_is_an_error_with_the_seeds(tmp_path):
    with pytest.raises(ResultTooLarge, match="fewer num_images") as failure:
        await noisy(tmp_path, 0.02).draw(num_images=8, seed=40)
    assert failure.value.details["seeds"] == [*range(40, 48)]
    assert failure.value.details["max_bytes"] == 20_000


async def test_a_jpeg_stays_a_jpeg(tmp_path):
    answer = await noisy(tmp_path, 0.32).draw(num_images=8, output={"format": "jpeg", "quality": 100})
    assert answer["format"] == "jpeg"


async def test_the_size_is_of_the_body_as_the_platform_gets_it(desk):
    answer = await desk.draw(prompt="ü" * 4000)
    sent = json.dumps({"output": answer}, ensure_ascii=False).encode()
    assert body_bytes(answer) == len(sent)
    assert len(sent) < 4000 * 2 * 2 + 3000  # twice, in two bytes each; as ASCII it would be six


async def test_too_large_for_the_answer_goes_to_the_bucket(tmp_path, bucket):
    answer = await noisy(tmp_path, 0.4, **bucket_settings(bucket)).draw(_id="job/../1", num_images=8)
    assert answer["image_url"] == answer["image"] == answer["images"][0]
    assert "uploaded" in answer["warnings"][0]
    assert len(bucket.objects) == 8
    for index, url in enumerate(answer["images"]):
        body = urllib.request.urlopen(url, timeout=5).read()
        assert Image.open(io.BytesIO(body)).tobytes() == noise(None, answer["seeds"][index]).data
    assert all(".." not in key and key.count("/") == 1 for _, key in bucket.objects)


async def test_delivery_by_bucket_when_asked_for(tmp_path, bucket):
    answer = await make_desk(tmp_path, **bucket_settings(bucket)).draw(output={"delivery": "s3", "format": "webp"})
    assert answer["image_url"].startswith(bucket.endpoint)
    assert answer["warnings"] == []
    (stored,) = bucket.objects.values()
    assert stored.content_type == "image/webp"
    assert stored.body.startswith(MAGIC["webp"])


async def test_a_bucket_that_refuses_costs_no_picture(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    answer = await noisy(tmp_path, 0.4, **bucket_settings(bucket)).draw(num_images=8)
    assert answer["format"] == "webp"
    assert "AccessDenied" in answer["warnings"][0]
    assert "webp" in answer["warnings"][1]
    assert "image_url" not in answer


async def test_a_bucket_that_refuses_what_was_asked_of_it_costs_no_picture(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    answer = await make_desk(tmp_path, **bucket_settings(bucket)).draw(output={"delivery": "s3"})
    assert files(answer)[0].startswith(MAGIC["png"])
    assert "AccessDenied" in answer["warnings"][0]
    assert "image_url" not in answer
    assert "test-secret" not in json.dumps(answer)


async def test_a_refused_bucket_is_named_when_nothing_fits(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    with pytest.raises(ResultTooLarge) as failure:
        await noisy(tmp_path, 0.02, **bucket_settings(bucket)).draw(num_images=8)
    assert "AccessDenied" in failure.value.details["bucket"]


async def test_delivery_by_bucket_without_one_is_refused_before_drawing(desk):
    with pytest.raises(InvalidRequest, match="needs a bucket") as failure:
        await desk.draw(output={"delivery": "s3"})
    assert failure.value.field == "output"
    assert desk.builder.built == 0


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
async def test_the_format_asked_for_is_the_format_sent(desk, format_):
    answer = await desk.draw(output={"format": format_})
    assert answer["format"] == format_
    (data,) = files(answer)
    assert data.startswith(MAGIC[format_])
    assert Image.open(io.BytesIO(data)).size == (64, 64)


@pytest.mark.parametrize("format_", ["jpeg", "webp"])
async def test_quality_decides_the_size(tmp_path, format_):
    desk = noisy(tmp_path, 9.5)
    sizes = [
        len(files(await desk.draw(seed=1, output={"format": format_, "quality": quality}))[0]) for quality in (5, 95)
    ]
    assert sizes[0] < sizes[1] / 2


async def test_metadata_in_a_png_draws_the_picture_again(desk):
    answer = await desk.draw(prompt="canary ü", output={"metadata": True})
    text = Image.open(io.BytesIO(files(answer)[0])).text["parameters"]
    assert json.loads(text) == answer["reproduce"]["input"]
    assert json.loads(text)["prompt"] == "canary ü"
    again = await desk.ask(**json.loads(text))
    assert again["seeds"] == answer["seeds"]


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
async def test_a_file_says_nothing_of_its_prompt_by_default(desk, format_):
    (data,) = files(await desk.draw(prompt="canary", negative_prompt="canary", output={"format": format_}))
    assert b"canary" not in data
    image = Image.open(io.BytesIO(data))
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "background", "loop"}


async def test_a_large_input_picture_is_not_sent_back(desk):
    out = io.BytesIO()
    Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3)).save(out, "PNG")
    large = base64.b64encode(out.getvalue()).decode()
    answer = await desk.draw(image=large, strength=0.5)
    assert "image" not in answer["reproduce"]["input"]
    assert "leaves out image" in answer["warnings"][0]
    again = await desk.ask(**answer["reproduce"]["input"], image=large)
    assert again["images"] == answer["images"]


def noisy_film(tmp_path, limit_mb, **settings):
    return make_desk(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


FILM = {"model": "video", "width": 128, "height": 128, "num_frames": 9}


@pytest.fixture
def declared(monkeypatch):
    """The shelf's video model is only declared: its files are never looked for."""

    async def provide(self, job, emit):
        return Batch((job,), ModelFiles(root=Path(), total_bytes=0))

    monkeypatch.setattr(Provisioner, "provide", provide)


async def test_a_video_is_an_mp4_in_place_of_an_image(tmp_path, declared):
    answer = await noisy_film(tmp_path, 9.5).draw(**FILM, num_images=2)
    assert (answer["format"], answer["num_frames"], answer["fps"]) == ("mp4", 9, 8.0)
    assert answer["video"] == answer["videos"][0]
    assert len(answer["videos"]) == 2
    assert not {"image", "images"} & answer.keys()
    assert base64.b64decode(answer["video"])[4:8] == b"ftyp"
    assert answer["usage"]["pixel_steps"] == 128 * 128 * 50 * 9 * 2


@pytest.mark.parametrize(("format_", "magic"), [("gif", b"GIF8"), ("webp", b"RIFF"), ("mp4", b"\0\0\0")])
async def test_a_video_comes_in_the_format_asked_for(tmp_path, declared, format_, magic):
    answer = await noisy_film(tmp_path, 9.5).draw(**FILM, output={"format": format_}, fps=5)
    assert (answer["format"], answer["fps"]) == (format_, 5)
    data = base64.b64decode(answer["video"])
    assert data.startswith(magic)
    if format_ != "mp4":
        assert Image.open(io.BytesIO(data)).n_frames == 9


async def test_a_video_over_the_limit_loses_quality_and_it_says_so(tmp_path, declared):
    whole = len((await noisy_film(tmp_path, 9.5).draw(**FILM, seed=1))["video"])
    desk = noisy_film(tmp_path, whole * 0.8 / 1e6)
    answer = await desk.draw(**FILM, seed=1)
    assert answer["format"] == "mp4"
    assert body_bytes(answer) <= whole * 0.8
    assert "As mp4 the videos exceed" in answer["warnings"][0]
    with pytest.raises(ResultTooLarge, match="ask for fewer num_frames") as failure:
        await noisy_film(tmp_path, 0.02).draw(**FILM)
    assert failure.value.field == "num_frames"


async def test_a_video_can_be_uploaded(tmp_path, bucket, declared):
    desk = noisy_film(tmp_path, 9.5, **bucket_settings(bucket))
    answer = await desk.draw(**FILM, output={"delivery": "s3"})
    assert answer["video_url"] == answer["video"] == answer["videos"][0]
    ((_, stored),) = bucket.objects.items()
    assert stored.content_type == "video/mp4"


@pytest.mark.parametrize(("model", "format_"), [("tiny", "mp4"), ("video", "png")])
async def test_a_format_of_the_other_kind_is_refused_before_drawing(tmp_path, model, format_):
    desk = make_desk(tmp_path)
    with pytest.raises(InvalidRequest, match=f"{format_} is not for") as failure:
        await desk.draw(model=model, output={"format": format_})
    assert failure.value.field == "output"
    assert desk.builder.built == 0
