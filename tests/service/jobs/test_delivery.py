"""Pictures into answers that fit: measured as sent, uploaded where there is a bucket, never lost without a word."""

import base64
import io
import json
import random
import re
import urllib.request
from dataclasses import fields, replace
from pathlib import Path

import av
import pytest
from PIL import ExifTags, Image

from tests.asking import an_answer
from tests.fakes.bucket import FakeBucket
from tests.fakes.engine import FakeEngine, make_context
from worker.core.answer import AnswerFile
from worker.core.errors import InvalidRequest, ResultTooLarge, WorkerError
from worker.core.image import Raster
from worker.core.job import Batch
from worker.core.model import ModelFiles
from worker.core.request import OutputOptions
from worker.core.result import EncodedArtifact, JobFacts, JobResult, ignore_progress
from worker.net.bucket import Bucket, BucketConfig
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.infotext import comment_on
from worker.service.local.provisioning import Provisioner
from worker.transport.serverless import ServerlessDoor
from worker.wire.request import decode_generation
from worker.wire.result import body_bytes, encode_answer

MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


def noise(job, seed):
    """A picture that no lossless format makes smaller."""
    return Raster("RGB", 128, 128, random.Random(seed).randbytes(128 * 128 * 3))


def noisy(tmp_path, limit_mb, **settings):
    return make_context(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


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
    assert (answer["format"], answer["warnings"]) == ("png", [])
    assert all(data.startswith(MAGIC["png"]) for data in files(answer))


@pytest.mark.parametrize(("limit_mb", "format_"), [(0.4, "webp"), (0.16, "jpeg")])
async def test_eight_pictures_over_the_limit_are_encoded_smaller_and_it_says_so(tmp_path, limit_mb, format_):
    answer = await noisy(tmp_path, limit_mb).draw(num_images=8)
    assert (answer["format"], len(files(answer))) == (format_, 8)
    assert len(json.dumps(answer).encode()) <= limit_mb * 1e6
    assert all(data.startswith(MAGIC[format_]) for data in files(answer))
    assert re.search(f"As png .* encoded as {format_}", *answer["warnings"])


async def test_what_fits_in_no_format_is_an_error_with_the_seeds(tmp_path):
    with pytest.raises(ResultTooLarge, match="fewer num_images") as failure:
        await noisy(tmp_path, 0.02).draw(num_images=8, seed=40)
    assert failure.value.details["seeds"] == [*range(40, 48)]
    assert failure.value.details["max_bytes"] == 20_000


async def test_a_jpeg_stays_a_jpeg(tmp_path):
    output = {"format": "jpeg", "quality": 100}
    assert (await noisy(tmp_path, 0.32).draw(num_images=8, output=output))["format"] == "jpeg"


async def test_the_size_is_of_the_body_as_the_platform_gets_it(context):
    answer = await context.worker.actions.perform({"prompt": "ü" * 4000}, "job", ignore_progress)
    sent = body_bytes(answer)
    assert sent == len(json.dumps({"output": encode_answer(answer)}, ensure_ascii=False).encode())
    assert sent < 4000 * 2 * 2 + 3000  # twice, in two bytes each; as ASCII it would be six


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
    answer = await make_context(tmp_path, **bucket_settings(bucket)).draw(output={"delivery": "s3", "format": "webp"})
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
    answer = await make_context(tmp_path, **bucket_settings(bucket)).draw(output={"delivery": "s3"})
    assert files(answer)[0].startswith(MAGIC["png"])
    assert "AccessDenied" in answer["warnings"][0]
    assert "image_url" not in answer
    assert "test-secret" not in json.dumps(answer)


async def test_a_refused_bucket_is_named_when_nothing_fits(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    with pytest.raises(ResultTooLarge) as failure:
        await noisy(tmp_path, 0.02, **bucket_settings(bucket)).draw(num_images=8)
    assert "AccessDenied" in failure.value.details["bucket"]


async def test_a_callers_own_bucket_gets_what_he_asked_for(tmp_path, bucket):
    context = make_context(tmp_path, allow_private_urls=True)
    answer = await context.draw(s3Config=bucket.s3_config("my-pictures"), seed=3)
    ((place, _),) = bucket.objects.items()
    assert place[0] == "my-pictures"
    assert answer["image_url"].startswith(bucket.endpoint)
    assert "test-secret" not in json.dumps(answer)
    assert "test-access" not in json.dumps(answer["reproduce"])
    again = await context.draw(**answer["reproduce"]["input"])  # the bucket is not what the picture is made of
    with urllib.request.urlopen(answer["image_url"]) as stored:
        assert base64.b64decode(again["image"]) == stored.read()


async def test_runpods_place_for_a_bucket_is_beside_the_input(tmp_path, bucket):
    context = make_context(tmp_path, allow_private_urls=True)
    job = {"id": "b-1", "input": {"prompt": "x"}, "s3Config": bucket.s3_config()}
    answer = await ServerlessDoor(context.worker.actions, concurrency=1).handle(job)
    assert answer["image_url"].startswith(bucket.endpoint)


async def test_a_callers_bucket_that_refuses_costs_no_picture(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    answer = await make_context(tmp_path, allow_private_urls=True).draw(s3Config=bucket.s3_config())
    assert base64.b64decode(answer["image"])
    assert any("AccessDenied" in note and "s3Config" in note for note in answer["warnings"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpointUrl": "https://127.0.0.1"}, "not a public one"),
        ({"endpointUrl": "http://example.com"}, "only https"),
        ({"bucketName": "a/b"}, "s3Config.bucketName must be"),
        ({"accessKey": "x"}, "s3Config.accessKey is not a known field"),
    ],
)
async def test_a_callers_bucket_is_refused_before_anything_is_drawn(context, change, message):
    sent = {"endpointUrl": "https://example.com", "bucketName": "mine", "accessId": "a", "accessSecret": "b"} | change
    with pytest.raises(WorkerError, match=message) as failure:
        await context.draw(s3Config=sent)
    assert failure.value.field == "s3Config"
    assert context.builder.built == 0


async def test_delivery_by_bucket_without_one_is_refused_before_drawing(context):
    with pytest.raises(InvalidRequest, match="needs a bucket") as failure:
        await context.draw(output={"delivery": "s3"})
    assert failure.value.field == "output"
    assert context.builder.built == 0


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
async def test_the_format_asked_for_is_the_format_sent(context, format_):
    answer = await context.draw(output={"format": format_})
    assert answer["format"] == format_
    (data,) = files(answer)
    assert data.startswith(MAGIC[format_])
    assert Image.open(io.BytesIO(data)).size == (64, 64)


@pytest.mark.parametrize("format_", ["jpeg", "webp"])
async def test_quality_decides_the_size(tmp_path, format_):
    context = noisy(tmp_path, 9.5)
    sizes = [
        len(files(await context.draw(seed=1, output={"format": format_, "quality": quality}))[0]) for quality in (5, 95)
    ]
    assert sizes[0] < sizes[1] / 2


async def test_metadata_in_a_png_draws_the_picture_again(context):
    answer = await context.draw(prompt="canary ü", output={"metadata": True})
    text = Image.open(io.BytesIO(files(answer)[0])).text["generation"]
    fields = json.loads(text)["input"]
    assert fields["prompt"] == "canary ü"
    again = await context.ask(**fields)
    assert again["seeds"] == answer["seeds"]
    assert files(again) != files(answer)  # what is in the file does not ask for itself
    assert Image.open(io.BytesIO(files(again)[0])).tobytes() == Image.open(io.BytesIO(files(answer)[0])).tobytes()


async def test_metadata_of_a_films_frames_says_how_many_there_are(tmp_path, declared):
    answer = await make_context(tmp_path).draw(**FILM, output={"metadata": True, "format": "png"})
    text = Image.open(io.BytesIO(files(answer)[0])).text["generation"]
    assert json.loads(text)["input"]["num_frames"] == FILM["num_frames"]


_SAID = (
    "a red, red apple\nNegative prompt: blurry\n"
    "Steps: 3, Sampler: EulerAncestralDiscreteScheduler, CFG scale: 4, Seed: "
)


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
async def test_metadata_is_the_infotext_that_other_tools_read(context, format_):
    answer = await context.draw(
        prompt="a red, red apple",
        negative_prompt="blurry",
        num_images=2,
        num_inference_steps=3,
        guidance_scale=4,
        scheduler="euler_a",
        output={"metadata": True, "format": format_},
    )
    for index, data in enumerate(files(answer)):
        image = Image.open(io.BytesIO(data))
        if format_ == "png":
            text = image.text["parameters"]
        else:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            assert comment.startswith(b"UNICODE\0")
            text = comment[8:].decode("utf-16-be")
        assert text.startswith(f"{_SAID}{answer['seeds'][index]}, Size: {image.width}x{image.height}, Model: ")
        assert "Version: diffusers" in text


async def test_no_picture_no_token_and_no_query_gets_into_a_file(context):
    request = decode_generation({"prompt": "like https://user:pw@example.com/a.png?token=hf_secret#part says"})
    result = await context.worker.actions.generation.generate(request, "job", lambda progress: None)
    secrets = {
        "image": "https://example.com/in.png?X-Amz-Signature=hf_secret",
        "mask_image": "aGZfc2VjcmV0" * 9,
        "controlnets": [{"model": "org/net", "image": "hf_secret", "scale": 0.5}],
        "loras": [{"model": "https://example.com/l.safetensors?token=hf_secret"}],
        "source_prompt": "hf_secret" * 900,
    }
    reproduce = replace(result.reproduce, input={**result.reproduce.input, **secrets}, model="org/m?token=hf_secret")
    comment = comment_on(replace(result, reproduce=reproduce, model="org/m?token=hf_secret"), result.artifacts[0])
    for text in (comment.text, comment.data):
        assert "hf_secret" not in text
        assert "aGZfc2VjcmV0" not in text
        assert "pw@" not in text
    kept = json.loads(comment.data)["input"]
    assert kept["controlnets"] == [{"model": "org/net", "scale": 0.5}]
    assert kept["loras"] == [{"model": "https://example.com/l.safetensors"}]
    assert kept["prompt"] == "like https://example.com/a.png says"


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
async def test_a_file_says_nothing_of_its_prompt_by_default(context, format_):
    (data,) = files(await context.draw(prompt="canary", negative_prompt="canary", output={"format": format_}))
    assert b"canary" not in data
    image = Image.open(io.BytesIO(data))
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "background", "loop"}


async def test_a_large_input_picture_is_not_sent_back(context):
    out = io.BytesIO()
    Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3)).save(out, "PNG")
    large = base64.b64encode(out.getvalue()).decode()
    answer = await context.draw(image=large, strength=0.5)
    assert "image" not in answer["reproduce"]["input"]
    assert "leaves out image" in answer["warnings"][0]
    again = await context.ask(**answer["reproduce"]["input"], image=large)
    assert again["images"] == answer["images"]


def noisy_film(tmp_path, limit_mb, **settings):
    return make_context(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


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
    context = noisy_film(tmp_path, whole * 0.8 / 1e6)
    answer = await context.draw(**FILM, seed=1)
    assert answer["format"] == "mp4"
    assert len(json.dumps({"output": answer}, ensure_ascii=False).encode()) <= whole * 0.8
    assert "As mp4 the videos exceed" in answer["warnings"][0]
    with pytest.raises(ResultTooLarge, match="ask for fewer num_frames") as failure:
        await noisy_film(tmp_path, 0.02).draw(**FILM)
    assert failure.value.field == "num_frames"


async def test_a_video_can_be_uploaded(tmp_path, bucket, declared):
    context = noisy_film(tmp_path, 9.5, **bucket_settings(bucket))
    answer = await context.draw(**FILM, output={"delivery": "s3"})
    assert answer["video_url"] == answer["video"] == answer["videos"][0]
    ((_, stored),) = bucket.objects.items()
    assert stored.content_type == "video/mp4"


async def test_a_video_can_come_as_its_frames(tmp_path, declared):
    context = make_context(tmp_path)
    answer = await context.draw(**FILM, num_images=2, output={"format": "png"})
    assert (answer["format"], answer["num_frames"], answer["fps"], len(answer["images"])) == ("png", 9, 8.0, 18)
    assert answer["image"] == answer["images"][0]
    assert "video" not in answer
    assert len(answer["seeds"]) == 2
    sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in answer["images"]}
    assert sizes == {(128, 128)}


async def test_frames_that_do_not_fit_are_encoded_smaller_or_uploaded(tmp_path, bucket, declared):
    answer = await noisy_film(tmp_path, 0.4).draw(**FILM, output={"format": "png"})
    assert (answer["format"], len(answer["images"])) == ("jpeg", 9)
    assert "encoded as jpeg" in answer["warnings"][-1]
    sent = await noisy_film(tmp_path, 9.5, **bucket_settings(bucket)).draw(
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
async def test_a_film_says_how_it_was_made_too(tmp_path, declared, format_):
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


def came_encoded(*files, **facts):
    """What a backend hands over whose images were encoded elsewhere."""
    made = an_answer(AnswerFile("webp", b""), **facts)
    known = {item.name: getattr(made, item.name) for item in fields(JobFacts)}
    artifacts = tuple(EncodedArtifact(data, "webp", seed, 640, 480) for seed, data in enumerate(files))
    return JobResult(**known, artifacts=artifacts)


async def test_what_came_encoded_leaves_as_it_came():
    result = came_encoded(b"RIFF one", b"RIFF two", warnings=("Said elsewhere.",))
    answer = Delivery(10_000).deliver(result, OutputOptions(format="png", metadata=True), "job")
    assert [(file.data, file.media_type) for file in answer.files] == [
        (b"RIFF one", "image/webp"),
        (b"RIFF two", "image/webp"),
    ]
    written = encode_answer(answer)
    assert (written["format"], written["width"], written["height"], written["seeds"]) == ("webp", 640, 480, [0, 1])
    assert written["image"] == base64.b64encode(b"RIFF one").decode()
    assert written["warnings"] == ["Said elsewhere."]


async def test_what_came_encoded_and_is_too_large_is_uploaded_or_refused_and_never_encoded_again(bucket):
    result, output = came_encoded(b"RIFF" * 1_000), OutputOptions()
    with pytest.raises(ResultTooLarge):
        Delivery(5_000).deliver(result, output, "job")
    config = BucketConfig(bucket.endpoint, "pictures", "test-access", "test-secret", url_expires_s=60)
    answer = Delivery(5_000, Bucket(config)).deliver(result, output, "job")
    assert answer.files[0].url.startswith(bucket.endpoint)
    ((_, stored),) = bucket.objects.items()
    assert (stored.body, stored.content_type) == (b"RIFF" * 1_000, "image/webp")
