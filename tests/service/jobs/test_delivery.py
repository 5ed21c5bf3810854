"""Images into answers that fit: measured as sent, uploaded where there is a bucket, never lost without a word."""

import base64
import io
import json
import random
import re
import urllib.request
from dataclasses import fields, replace

import pytest
from PIL import ExifTags, Image

from tests.asking import an_answer
from tests.fakes import engine
from tests.fakes.engine import TRACED, make_context
from tests.service.jobs.delivering import MAGIC, bucket_settings, files, noise, noisy
from worker.app.queue import build_door
from worker.core.errors import InvalidRequest, ResultTooLarge, WorkerError
from worker.core.request import OutputOptions
from worker.core.result import AnswerFile, EncodedArtifact, JobFacts, JobResult, ignore_progress
from worker.net.bucket import Bucket, BucketConfig
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.infotext import comment_on
from worker.service.limits.pools import Pools
from worker.transport.job_input import read_input
from worker.wire.request import decode_generation
from worker.wire.result import body_bytes, encode_answer


async def test_images_that_fit_are_left_alone(tmp_path):
    answer = await noisy(tmp_path, 9.5).draw(num_images=2)
    assert (answer["format"], answer["warnings"]) == ("png", [])
    assert all(data.startswith(MAGIC["png"]) for data in files(answer))


@pytest.mark.parametrize(("limit_mb", "format_"), [(0.4, "webp"), (0.16, "jpeg")])
async def test_eight_images_over_the_limit_are_encoded_smaller_and_it_says_so(tmp_path, limit_mb, format_):
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
    answer = await context.worker.operations.perform(read_input({"prompt": "ü" * 4000}), "job", ignore_progress)
    sent = body_bytes(answer)
    assert sent == len(json.dumps({"output": encode_answer(answer)}, ensure_ascii=False).encode())
    assert sent < 4000 * 2 * 2 + 3000  # twice, in two bytes each; as ASCII it would be six


async def test_too_large_for_the_answer_goes_to_the_bucket(tmp_path, bucket):
    answer = await noisy(tmp_path, 0.4, **bucket_settings(bucket)).draw(_id="job/../1", num_images=8)
    assert answer["image_url"] == answer["images"][0]
    assert "image" not in answer
    assert "uploaded" in answer["warnings"][0]
    assert len(bucket.objects) == 8
    for index, url in enumerate(answer["images"]):
        body = urllib.request.urlopen(url, timeout=60).read()
        assert Image.open(io.BytesIO(body)).tobytes() == noise(None, answer["seeds"][index]).data
    assert all(".." not in key and key.count("/") == 1 for _, key in bucket.objects)


async def test_delivery_by_bucket_when_asked_for(tmp_path, bucket):
    answer = await make_context(tmp_path, **bucket_settings(bucket)).draw(output={"delivery": "s3", "format": "webp"})
    assert answer["image_url"].startswith(bucket.endpoint)
    assert answer["warnings"] == []
    (stored,) = bucket.objects.values()
    assert stored.content_type == "image/webp"
    assert stored.body.startswith(MAGIC["webp"])


async def test_a_trace_goes_where_the_images_go(tmp_path, bucket):
    context = make_context(tmp_path, volume_dir=tmp_path / "volume", **bucket_settings(bucket))
    assert base64.b64decode((await context.draw(profile=True))["profile"]["trace"]) == TRACED.trace
    profile = (await context.draw(profile=True, output={"delivery": "s3"}))["profile"]
    assert "trace" not in profile
    assert urllib.request.urlopen(profile["trace_url"], timeout=60).read() == TRACED.trace
    profile = (await context.draw(profile=True, output={"delivery": "volume"}))["profile"]
    assert (tmp_path / "volume" / profile["trace_path"]).read_bytes() == TRACED.trace


async def test_a_trace_that_does_not_fit_goes_before_an_image_does(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "TRACED", replace(TRACED, trace=b"x" * 100_000))
    answer = await noisy(tmp_path, 0.1).draw(profile=True)
    assert (answer["format"], "trace" in answer["profile"]) == ("png", False)
    assert answer["profile"]["left_out"] == answer["profile"]["events"]
    assert answer["profile"]["operators"]
    assert "the trace was left out" in answer["warnings"][0]


async def test_a_bucket_that_refuses_costs_no_image(tmp_path, bucket):
    bucket.refuse(403, "AccessDenied")
    answer = await noisy(tmp_path, 0.4, **bucket_settings(bucket)).draw(num_images=8)
    assert answer["format"] == "webp"
    assert "AccessDenied" in answer["warnings"][0]
    assert "webp" in answer["warnings"][1]
    assert "image_url" not in answer


async def test_a_bucket_that_refuses_what_was_asked_of_it_costs_no_image(tmp_path, bucket):
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
    answer = await context.draw(s3Config=bucket.s3_config("my-images"), seed=3)
    ((place, _),) = bucket.objects.items()
    assert place[0] == "my-images"
    assert answer["image_url"].startswith(bucket.endpoint)
    assert "test-secret" not in json.dumps(answer)
    assert "test-access" not in json.dumps(answer["reproduce"])
    again = await context.draw(**answer["reproduce"]["input"])  # the bucket is not what the image is made of
    with urllib.request.urlopen(answer["image_url"]) as stored:
        assert base64.b64decode(again["image"]) == stored.read()


async def test_runpods_place_for_a_bucket_is_beside_the_input(tmp_path, bucket):
    context = make_context(tmp_path, allow_private_urls=True)
    job = {"id": "b-1", "input": {"prompt": "x"}, "s3Config": bucket.s3_config()}
    answer = await build_door(context.worker, concurrency=1).handle(job)
    assert answer["image_url"].startswith(bucket.endpoint)


async def test_a_callers_bucket_that_refuses_costs_no_image(tmp_path, bucket):
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


async def test_metadata_in_a_png_draws_the_image_again(context):
    answer = await context.draw(prompt="canary ü", output={"metadata": True})
    text = Image.open(io.BytesIO(files(answer)[0])).text["generation"]
    fields = json.loads(text)["input"]
    assert fields["prompt"] == "canary ü"
    again = await context.ask(**fields)
    assert again["seeds"] == answer["seeds"]
    assert files(again) != files(answer)  # what is in the file does not ask for itself
    assert Image.open(io.BytesIO(files(again)[0])).tobytes() == Image.open(io.BytesIO(files(answer)[0])).tobytes()


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


async def test_no_image_no_token_and_no_query_gets_into_a_file(context):
    request = decode_generation({"prompt": "like https://user:pw@example.com/a.png?token=hf_secret#part says"})
    result = await context.worker.operations.generation.generate(request, "job", lambda progress: None)
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


async def test_a_large_input_image_is_not_sent_back(context):
    out = io.BytesIO()
    Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3)).save(out, "PNG")
    large = base64.b64encode(out.getvalue()).decode()
    answer = await context.draw(image=large, strength=0.5)
    assert "image" not in answer["reproduce"]["input"]
    assert "leaves out image" in answer["warnings"][0]
    again = await context.ask(**answer["reproduce"]["input"], image=large)
    assert again["image"] == answer["image"]


def came_encoded(*files, **facts):
    """What a backend hands over whose images were encoded elsewhere."""
    made = an_answer(AnswerFile("webp", b""), **facts)
    known = {item.name: getattr(made, item.name) for item in fields(JobFacts)}
    artifacts = tuple(EncodedArtifact((AnswerFile("webp", data),), seed, 640, 480) for seed, data in enumerate(files))
    return JobResult(**known, artifacts=artifacts)


async def test_what_came_encoded_leaves_as_it_came():
    result = came_encoded(b"RIFF one", b"RIFF two", warnings=("Said elsewhere.",))
    output = OutputOptions(format="png", metadata=True)
    answer = await Delivery(10_000).deliver(result, output, "job", Pools())
    assert [(file.data, file.media_type) for file in answer.files] == [
        (b"RIFF one", "image/webp"),
        (b"RIFF two", "image/webp"),
    ]
    written = encode_answer(answer)
    assert (written["format"], written["width"], written["height"], written["seeds"]) == ("webp", 640, 480, [0, 1])
    assert written["images"][0] == base64.b64encode(b"RIFF one").decode()
    assert written["warnings"] == ["Said elsewhere."]


async def test_what_came_encoded_and_is_too_large_is_uploaded_or_refused_and_never_encoded_again(bucket):
    result, output = came_encoded(b"RIFF" * 1_000), OutputOptions()
    with pytest.raises(ResultTooLarge):
        await Delivery(5_000).deliver(result, output, "job", Pools())
    config = BucketConfig(bucket.endpoint, "images", "test-access", "test-secret", url_expires_s=60)
    answer = await Delivery(5_000, Bucket(config)).deliver(result, output, "job", Pools())
    assert answer.files[0].url.startswith(bucket.endpoint)
    ((_, stored),) = bucket.objects.items()
    assert (stored.body, stored.content_type) == (b"RIFF" * 1_000, "image/webp")
