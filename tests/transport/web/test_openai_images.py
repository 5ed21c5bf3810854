"""OpenAI's own client against the door that speaks its protocol."""

import base64
import io
import threading
import time

import httpx
import openai
import pytest
import yaml
from huggingface_hub import InferenceClient
from PIL import Image

from tests.fakes.bucket import FakeBucket
from tests.fakes.engine import FakeEngine, shelf
from tests.fakes.web_worker import WebWorker
from tests.transport.web.doors import hang_up_when_drawn
from tests.transport.web.uploads import mask, noise, png
from tests.waiting import until
from worker.core.errors import Overloaded

SIZE = "64x72"


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.origin}/v1", api_key="anything", timeout=60, max_retries=0) as found:
        yield found


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_images_of_words(served, client):
    began = int(time.time())
    drawn = client.images.generate(
        prompt="a red apple", model="tiny", n=2, size=SIZE, extra_body={"seed": 7, "negative_prompt": "a pear"}
    )
    assert [opened(image).size for image in drawn.data] == [(64, 72), (64, 72)]
    assert (drawn.size, drawn.output_format, drawn.seeds, drawn.usage.total_tokens) == (SIZE, "png", [7, 8], 0)
    assert began <= drawn.created <= time.time()
    job = served.context.engine.ran[0]
    assert (job.prompt, job.negative_prompt, job.seeds) == ("a red apple", "a pear", (7, 8))


def test_formats_and_what_has_no_effect(client):
    drawn = client.images.generate(
        prompt="x", size="auto", output_format="webp", output_compression=50, background="transparent",
        quality="high", style="vivid", moderation="low", user="me",
    )  # fmt: skip
    assert (opened(drawn.data[0]).format, drawn.output_format) == ("WEBP", "webp")
    assert [warning.split()[0] for warning in drawn.warnings] == ["quality", "style", "background"]
    assert client.images.generate(prompt="x", quality="auto", background="opaque").warnings == []


@pytest.mark.parametrize("name", ["jpg", "JPEG", "image/jpg", ".jpg"])
def test_jpg_is_jpeg_at_any_door(served, name):
    drawn = served.http.post("/v1/images/generations", json={"prompt": "x", "output_format": name}).json()
    assert drawn["output_format"] == "jpeg"
    assert served.http.post("/run", json={"prompt": "x", "output": {"format": name}}).json()["format"] == "jpeg"


def test_blanks_and_other_spellings_are_read(served):
    blank = {
        "size": "",
        "n": 0,
        "quality": "",
        "response_format": None,
        "output_format": "",
        "stream": None,
        "user": "",
    }
    assert served.http.post("/v1/images/generations", json={"prompt": "x", "model": "", **blank}).status_code == 200
    text = {"size": "64 X 72", "n": "2", "stream": "false", "partial_images": "0", "output_compression": "50"}
    drawn = served.http.post("/v1/images/generations", json={"prompt": "x", **text}).json()
    assert (drawn["size"], len(drawn["data"])) == (SIZE, 2)


def test_a_model_may_have_the_name_that_openais_clients_send(tmp_path):
    names = yaml.safe_load(shelf(tmp_path).read_text())
    names["models"]["tiny"]["aliases"] = ["gpt-image-1", "dall-e-3"]
    (tmp_path / "aliased.yaml").write_text(yaml.safe_dump(names))
    with WebWorker(tmp_path, models_yaml=tmp_path / "aliased.yaml") as served:
        for name, kind in (("gpt-image-1", "b64_json"), ("DALL-E-3", "url")):  # as OpenAI's own answered by default
            answer = served.http.post("/v1/images/generations", json={"prompt": "x", "model": name})
            assert answer.status_code == 200
            assert [
                name for name, value in answer.json()["data"][0].items() if value and name in ("b64_json", "url")
            ] == [kind]
        problem = served.http.post("/v1/images/generations", json={"prompt": "x", "model": "gpt-image-2"}).json()[
            "error"
        ]
    assert problem["code"] == "model_not_found"
    assert {job.call.spec.id for job in served.context.engine.ran} == {"tiny"}


def test_a_url_is_open_to_whoever_knows_it_for_a_while(tmp_path, clock):
    with WebWorker(tmp_path, api_keys="k" * 20, job_retention_seconds=1000) as served:
        client = openai.OpenAI(base_url=f"{served.origin}/v1", api_key="k" * 20, max_retries=0)
        headers = {"Idempotency-Key": "guess me"}
        drawn = client.images.generate(prompt="x", n=2, size=SIZE, response_format="url", extra_headers=headers)
        assert drawn.data[0].b64_json is None
        for index, image in enumerate(drawn.data):
            assert image.url.startswith(f"{served.origin}/v1/images/img-")
            got = httpx.get(image.url, timeout=60)
            assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
            assert Image.open(io.BytesIO(got.content)).getpixel((0, 0))[0] == (drawn.seeds[index]) % 251
        url = drawn.data[0].url
        assert httpx.get(url.replace("variant=0", "variant=2"), timeout=60).status_code == 404
        assert httpx.get(url.replace("img-", "img-0"), timeout=60).json()["error"]["code"] == "job_not_found"
        clock.forward(1001)
        assert httpx.get(url, timeout=60).status_code == 404


def test_a_job_that_was_handed_in_elsewhere_is_no_image_here(served):
    job = served.http.post("/v2/local/run", json={"input": {"prompt": "x"}}).json()["id"]
    assert served.http.get(f"/v1/images/{job}/content").status_code == 404


def test_one_and_several_images_are_edited(served, client):
    drawn = client.images.edit(
        image=png(64, 64), prompt="greener", model="tiny", extra_body={"strength": 0.5, "seed": 3}
    )
    assert (opened(drawn.data[0]).size, drawn.seeds) == ((64, 64), [3])
    job = served.context.engine.ran[0]
    assert (job.call.task.value, job.prompt, job.params["strength"]) == ("image-to-image", "greener", 0.5)
    with pytest.raises(openai.BadRequestError, match="2 were sent"):
        client.images.edit(image=[png(64, 64), png(64, 64)], prompt="x")


def test_a_mask_means_its_transparent_part(served, client):
    client.images.edit(image=png(64, 64), mask=mask(64, 64), prompt="x", model="any")
    (job,) = served.context.engine.ran
    assert job.call.task.value == "inpainting"
    (taken,) = next(media.images for media in job.media if media.field == "mask_image")
    assert [taken.data[x] for x in (0, 31, 32, 63)] == [255, 255, 0, 0]


def test_partial_images_and_then_the_whole_one(served, client):
    served.context.engine.steps = 6
    events = list(client.images.generate(prompt="x", size=SIZE, stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert [opened(event).format for event in events] == ["JPEG", "JPEG", "PNG"]
    assert events[-1].usage.total_tokens == 0
    events = list(client.images.edit(image=png(64, 64), prompt="x", model="tiny", stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_a_stream_that_is_refused_is_refused_at_once_and_one_that_fails_says_so(served, client):
    with pytest.raises(openai.BadRequestError, match="nope"):
        client.images.generate(prompt="x", model="nope", stream=True)
    assert served.context.builder.built == 0
    served.context.engine.poison = {"bad": ValueError("odd")}
    with pytest.raises(openai.APIError, match="unforeseen"):
        list(client.images.generate(prompt="bad", stream=True, partial_images=1))


class OneStep(threading.Event):
    """Lets one step pass each time it is set."""

    def wait(self, timeout=None):
        passed = super().wait(timeout)
        self.clear()
        return passed


def test_who_leaves_a_stream_takes_his_job_back(served):
    engine = served.context.engine
    engine.gate, engine.steps = OneStep(), 2
    engine.gate.set()
    body = {"prompt": "x", "stream": True, "partial_images": 1}
    with httpx.stream("POST", f"{served.origin}/v1/images/generations", json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # held: an iterator that is dropped hangs up
        assert next(lines).startswith("event: image_generation.partial_image")
        assert engine.inside.is_set()
    until(lambda: not engine.inside.is_set())
    assert not engine.inside.is_set()  # though it was never let go on


def test_who_hangs_up_before_he_has_his_url_takes_his_job_back(served):
    engine = served.context.engine
    engine.gate.clear()
    body = {"prompt": "x", "response_format": "url"}
    hang_up_when_drawn(served, "/v1/images/generations", body)
    until(lambda: not engine.inside.is_set())
    assert engine.ran
    assert not engine.inside.is_set()


def test_the_models(client):
    listed = client.models.list().data
    assert {model.id for model in listed} >= {"tiny", "org/sdxl"}
    found = client.models.retrieve("org/sdxl")
    assert (found.id, found.object, found.owned_by) == ("org/sdxl", "model", "org")
    assert client.models.retrieve("small").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"size": "big"}, "size"),
        ({"size": "65x64"}, "size"),
        ({"n": 99}, "n"),
        ({"model": "nope"}, "model"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"response_format": "hex"}, "response_format"),
        ({"stream": 1}, "stream"),
        ({"partial_images": 4}, "partial_images"),
        ({"extra_body": {"widht": 5}}, "widht"),
        ({"extra_body": {"output": 5}}, "output"),
    ],
)
def test_a_refusal_names_what_it_is_about_and_is_not_tried_again(served, asked, param):
    client = openai.OpenAI(base_url=f"{served.origin}/v1", api_key="anything", max_retries=2)
    with pytest.raises(openai.BadRequestError) as failure:
        client.images.generate(**{"prompt": "x", "model": "tiny", **asked})
    error = failure.value
    assert (error.param, error.type, error.response.headers["x-should-retry"]) == (
        param,
        "invalid_request_error",
        "false",
    )
    assert error.request_id == error.body["request_id"]
    assert served.context.builder.built == 0


def test_what_may_work_later_is_tried_again_by_the_client(served):
    served.context.engine.failures = [Overloaded("Busy.", details={"retry_after_s": 1})]
    client = openai.OpenAI(base_url=f"{served.origin}/v1", api_key="anything", max_retries=1)
    assert client.images.generate(prompt="x").data
    assert len(served.context.engine.ran) == 2
    served.context.engine.failures = [ValueError("odd")]
    with pytest.raises(openai.InternalServerError, match="unforeseen"):
        client.images.generate(prompt="x")
    assert len(served.context.engine.ran) == 3


def test_with_a_bucket_a_url_is_the_buckets(tmp_path):
    with FakeBucket() as bucket:
        with WebWorker(tmp_path, **s3(bucket)) as served:
            client = openai.OpenAI(base_url=f"{served.origin}/v1", api_key="anything")
            drawn = client.images.generate(prompt="x", n=2, response_format="url")
        assert all(image.url.startswith(bucket.origin) for image in drawn.data)
        assert all(httpx.get(image.url, timeout=60).content.startswith(b"\x89PNG") for image in drawn.data)


def test_an_image_that_is_too_large_comes_from_the_bucket_at_the_doors_that_send_files(tmp_path):
    engine = FakeEngine(pixels=lambda job, seed: noise(256, 256))
    with FakeBucket() as bucket, WebWorker(tmp_path, engine=engine, max_response_mb=0.2, **s3(bucket)) as served:
        url = f"{served.origin}/diffusers/generate?model_id=tiny"
        drawn = InferenceClient(model=url, token="anything").text_to_image("x")
        assert (drawn.size, len(bucket.objects)) == ((256, 256), 1)


def s3(bucket):
    names = {"bucket_endpoint_url": bucket.endpoint, "bucket_name": "results"}
    return names | {"bucket_access_key_id": "id", "bucket_secret_access_key": "secret"}


def test_the_same_key_is_the_same_image_in_whichever_form(served):
    def ask(**sent):
        body = {"prompt": "an apple", "size": "64x64", **sent}
        return served.http.post("/v1/images/generations", json=body, headers={"Idempotency-Key": "one"})

    image = ask().json()["data"][0]["b64_json"]
    url = ask(response_format="url").json()["data"][0]["url"]
    assert base64.b64encode(served.http.get(url).content).decode() == image
    assert image in ask(stream=True).text
    assert len(served.context.engine.ran) == 1
    assert ask(size="128x64").status_code == 400


EDITS = "/v1/images/edits"
IMAGE = base64.b64encode(png(64, 64)).decode()


@pytest.mark.parametrize(
    "sent",
    [
        {"images": [{"image_url": f"data:image/png;base64,{IMAGE}"}]},
        {"images": [{"image_url": {"url": IMAGE}}], "mask": None, "size": ""},
        {"image": [IMAGE]},
        {"image": {"url": IMAGE}},
        {"image_url": IMAGE, "image": ""},
    ],
)
def test_an_edit_may_be_json(served, sent):
    answer = served.http.post(EDITS, json={"model": "tiny", "prompt": "a red apple", "seed": "7", **sent})
    assert (answer.status_code, answer.json()["seeds"]) == (200, [7])
    job = served.context.engine.ran[0]
    assert (job.call.task.value, job.prompt) == ("image-to-image", "a red apple")


@pytest.mark.parametrize("sent", [{}, {"images": []}, {"image": None}, {"images": [{"file_id": "f"}]}, []])
def test_an_edit_in_json_without_an_image_is_refused(served, sent):
    body = {"model": "tiny", "prompt": "x", **sent} if isinstance(sent, dict) else sent
    assert served.http.post(EDITS, json=body).status_code == 400
    assert served.context.builder.built == 0


@pytest.mark.parametrize("form", [str, lambda text: {"image_url": f"data:image/png;base64,{text}"}])
def test_the_transparent_part_of_a_mask_in_json_is_changed(served, form):
    text = form(base64.b64encode(mask(64, 64)).decode())
    sent = {"model": "any", "prompt": "x", "images": [{"image_url": IMAGE}], "mask": text}
    assert served.http.post(EDITS, json=sent).status_code == 200
    job = served.context.engine.ran[0]
    (taken,) = next(media.images for media in job.media if media.field == "mask_image")
    assert (taken.data[0], taken.data[-1]) == (255, 0)


@pytest.mark.parametrize("names", [["image[0]", "image[1]"], ["images[]", "images[]"], ["image", "image[]"]])
def test_several_files_under_the_names_of_others_are_all_taken(served, names):
    files = [(name, (f"{at}.png", png(64, 64), "image/png")) for at, name in enumerate(names)]
    answer = served.http.post(EDITS, data={"model": "tiny", "prompt": "x"}, files=files)
    assert answer.status_code == 400
    assert "image takes one image for this model" in answer.json()["error"]["message"] or "2 were sent" in answer.text
    assert served.http.post(EDITS, data={"model": "tiny", "prompt": "x"}, files=files[:1]).status_code == 200


def test_extra_body_of_a_form_is_nested(served):
    data = {"model": "tiny", "prompt": "x", "output[format]": "webp", "output[quality]": "50", "seed": "7"}
    answer = served.http.post(EDITS, data=data, files={"image": png(64, 64)})
    assert (answer.status_code, answer.json()["output_format"]) == (200, "webp")
    for names in (("loras[][model]", "loras[][weight]"), ("loras[0][model]", "loras[0][weight]")):
        data = {"model": "tiny", "prompt": "x", names[0]: "nobody/allows-this", names[1]: "0.5"}
        problem = served.http.post(EDITS, data=data, files={"image": png(64, 64)}).json()["error"]
        assert "nobody/allows-this" in problem["message"]
        assert "loras[" not in problem["message"]


def test_openais_own_client_sends_objects_and_lists(served, client):
    edited = client.images.edit(
        model="tiny", prompt="x", image=("a.png", png(64, 64)), extra_body={"output": {"format": "webp"}, "steps": 3}
    )
    assert edited.output_format == "webp"
    assert served.context.engine.ran[0].params["num_inference_steps"] == 3
