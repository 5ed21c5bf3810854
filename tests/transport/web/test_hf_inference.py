"""Hugging Face's own client against the door that speaks its protocol."""

import base64
import io
from urllib.parse import quote

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.fakes.engine import FakeEngine
from tests.fakes.web_worker import WebWorker
from tests.transport.web.uploads import mask, noise, png
from worker.media.images import to_base64

PATH = "/diffusers/generate"
NAMED = f"{PATH}?model_id=tiny"


def client(served, query="?model_id=tiny", **options):
    return InferenceClient(model=f"{served.origin}{PATH}{query}", token="anything", timeout=60, **options)


def test_words_to_an_image(served):
    drawn = client(served).text_to_image(
        "a red apple", negative_prompt="a pear", width=64, height=72, num_inference_steps=3, guidance_scale=5, seed=7
    )
    assert drawn.size == (64, 72)
    assert drawn.format == "PNG"
    job = served.context.engine.ran[0]
    assert (job.prompt, job.negative_prompt, job.seeds) == ("a red apple", "a pear", (7,))
    assert job.params["num_inference_steps"] == 3


def test_an_image_to_an_image_with_and_without_words(served):
    drawn = client(served).image_to_image(
        png(80, 64), prompt="greener", target_size={"width": 64, "height": 64}, strength=0.5
    )
    assert drawn.size == (64, 64)
    client(served).image_to_image(png(64, 64))
    first, second = served.context.engine.ran
    assert [job.call.task.value for job in (first, second)] == ["image-to-image"] * 2
    assert (first.prompt, second.prompt) == ("greener", "")
    assert first.params["strength"] == 0.5


def test_the_headers_say_how_a_mask_was_read_and_what_is_warned_of(served):
    """The body is the image itself."""
    parameters = {"prompt": "x", "mask_image": to_base64(mask(64, 64)), "strength": 1.0}
    body = {"model_id": "any", "inputs": to_base64(png(64, 64)), "parameters": parameters}
    answer = httpx.post(f"{served.origin}{PATH}", json=body, timeout=60)
    assert (answer.status_code, answer.headers["x-mask"]) == (200, "hole")
    assert answer.headers["x-warnings"] == "mask_image has transparency: its transparent part is redrawn."
    plain = httpx.post(f"{served.origin}{PATH}", json={"model_id": "any", "inputs": "x"}, timeout=60)
    assert not {"x-mask", "x-warnings"} & plain.headers.keys()


PNG = base64.b64encode(png(64, 64)).decode()


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    "inputs",
    [
        PNG,
        f" {PNG}",
        f"data:image/png;base64,{PNG}",
        f"DATA:image/png;base64,{PNG}",
        f"data:;base64,{PNG}",
        quote(f"data:image/png;base64,{PNG}"),
        {"url": f"data:image/png;base64,{PNG}"},
        {"image": PNG},
    ],
)
def test_inputs_that_are_an_image_are_never_words(served, inputs):
    for parameters in ({}, {"prompt": ""}, {"prompt": "greener"}):
        assert served.http.post(NAMED, json={"inputs": inputs, "parameters": parameters}).status_code == 200
        job = served.context.engine.ran[-1]
        assert (job.call.task.value, job.prompt) == ("image-to-image", parameters.get("prompt", ""))


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    "inputs",
    [
        "https://127.0.0.1/cat.png",
        "http://127.0.0.1/my cat.png",
        "ftp://a.example/cat.png",
        "s3://bucket/cat.png",
        "blob:http://a.example/1",
        "data:image/png,x",
        "data:text/plain;base64,aGVsbG8=",
        "R0lGODlhAQ",
        "A" * 200,
        base64.urlsafe_b64encode(bytes(range(256))).decode(),
    ],
)
def test_what_can_only_be_an_image_is_refused_and_not_drawn_from(served, inputs):
    answer = served.http.post(NAMED, json={"inputs": inputs})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (400, "invalid_image", "image")
    assert served.context.builder.built == 0


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("inputs", ["Queen Kong", "data: a chart of numbers, in red", "a 1:1 photo", "RIFF", "x" * 99])
def test_words_stay_words(served, inputs):
    assert served.http.post(NAMED, json={"inputs": inputs, "parameters": {"prompt": None}}).status_code == 200
    assert served.context.engine.ran[0].prompt == inputs


@pytest.mark.parametrize("name", ["num_images", "num_images_per_prompt", "n", "num_outputs"])
def test_several_images_where_one_comes_back_are_refused_and_not_charged(served, name):
    for number in (2, 2.0, "4"):
        answer = served.http.post(NAMED, json={"inputs": "x", "parameters": {name: number}})
        assert (answer.status_code, answer.json()["field"]) == (400, name)
        assert "may be 1 at most here" in answer.json()["error"]
    assert served.context.builder.built == 0
    assert served.http.post(NAMED, json={"inputs": "x", "parameters": {name: 1}}).status_code == 200


def test_json_without_its_content_type_is_json(served):
    for content in (b'{"inputs": "a red apple"}', b'\n {"inputs": "a red apple", "parameters": null}'):
        for kind in (None, "application/x-www-form-urlencoded", "text/plain"):
            headers = {"content-type": kind} if kind else {}
            answer = httpx.post(f"{served.origin}{NAMED}", content=content, headers=headers, timeout=60)
            assert (answer.status_code, served.context.engine.ran[-1].prompt) == (200, "a red apple")
    for content in (b'{"inputs": ', b"inputs=a+red+apple"):
        broken = httpx.post(f"{served.origin}{NAMED}", content=content, timeout=60)
        assert (broken.status_code, broken.json()["field"]) == (400, "body")
        assert "JSON" in broken.json()["error"]


def test_blanks_in_any_place_say_nothing(served):
    parameters = {"target_size": {"width": 0, "height": None}, "negative_prompt": None, "seed": -1, "output": ""}
    for body in ({"parameters": parameters, "model_id": ""}, {"parameters": {"target_size": {}}}, {"parameters": ""}):
        assert served.http.post(NAMED, json={"inputs": "x", **body}).status_code == 200, body


def test_the_format_is_the_callers_and_not_the_one_that_the_client_adds(served):
    drawn = client(served, headers={"accept": "image/webp"}).text_to_image("x")
    assert drawn.format == "WEBP"
    for accept, kind in [
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "image/png"),
        ("image/gif, image/avif", "image/png"),
        ("image/png;q=0.2, image/webp;q=0.9", "image/webp"),
        ("image/webp;q=x, text/html", "image/png"),
    ]:
        answer = served.http.post(NAMED, json={"inputs": "x"}, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), accept
    assert answer.headers["x-seed"].isdecimal()


def test_where_the_model_is_named_and_which_place_goes_first(served):
    def ask(path=PATH, headers=None, **body):
        assert served.http.post(path, json={"inputs": "x", **body}, headers=headers).status_code == 200
        return served.context.engine.ran[-1].call.spec.id

    parameters = {"model_id": "tiny"}
    header = {"X-Model-Id": "any"}
    assert ask(parameters={"model_id": "any"}) == "any"
    assert ask(headers=header, parameters=parameters) == "any"
    assert ask(f"{PATH}/tiny", headers=header) == "tiny"
    assert ask("/models/any") == "any"
    assert ask(f"{PATH}/tiny?model_id=any") == "any"
    assert ask(f"{PATH}/any?model_id=any", model_id="small") == "tiny"
    client(served, "?model_id=any").text_to_image("x", extra_body={"model_id": "tiny"})
    assert served.context.engine.ran[-1].call.spec.id == "any"


def test_an_unknown_model_is_400_with_those_there_are_and_nothing_is_built(served):
    with pytest.raises(HfHubHTTPError) as failure:
        client(served, "?model_id=a%2Fb").text_to_image("x")
    assert failure.value.response.status_code == 400
    assert "'a/b'" in str(failure.value)
    answer = served.http.post(PATH, json={"inputs": "x", "model_id": "a/b"})
    found = answer.json()
    assert found["supported_models"] == ["tiny", "any", "org/sdxl", "fast", "editor", "video"]
    assert found["error"].endswith("There are tiny, any, org/sdxl, fast, editor, video.")
    assert (answer.headers["x-error-code"], answer.headers["x-error-message"]) == ("model_not_found", found["error"])
    assert served.context.builder.built == 0


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"inputs": "x"}},
        {"json": {"inputs": "x", "model_id": None, "parameters": {"model_id": ""}}},
        {"content": png(64, 64), "headers": {"content-type": "image/png"}},
    ],
)
def test_a_request_that_names_no_model_is_400_with_those_there_are(served, sent):
    answer = served.http.post(PATH, **sent)
    assert (answer.status_code, answer.json()["field"]) == (400, "model_id")
    assert answer.json()["error"].endswith("There are tiny, any, org/sdxl, fast, editor, video.")
    assert answer.json()["supported_models"][0] == "tiny"
    assert served.context.builder.built == 0


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "inputs"),
        ([], 400, "body"),
        ({"inputs": 5}, 400, "inputs"),
        ({"inputs": "x", "parameters": 5}, 400, "parameters"),
        ({"inputs": "x", "parameters": {"widht": 5}}, 400, "widht"),
        ({"inputs": "x", "parameters": {"action": "unload"}}, 400, "action"),
        ({"inputs": "x", "width": 64}, 400, "width"),
        ({"inputs": "x", "model_id": 5}, 400, "model"),
        ({"inputs": "x", "parameters": {"target_size": 64}}, 400, "target_size"),
        ({"inputs": "no image", "parameters": {"prompt": "x"}}, 400, "image"),
        ({"inputs": "x", "parameters": {"output": 5}}, 400, "output"),
        ({"inputs": "x", "model_id": "org/sdxl"}, 502, "model"),
    ],
)
def test_a_refusal_is_a_sentence_where_the_client_looks_for_it(served, body, status, field):
    answer = served.http.post(NAMED, json=body)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
    assert answer.json().get("field") == field
    assert answer.headers["x-error-code"] == answer.json()["code"]
    assert served.context.builder.built == 0


def test_what_a_header_cannot_hold_does_not_break_the_answer(served):
    answer = served.http.post(NAMED, json={"inputs": "x", "widht\r\n\0\x85\u2028ü€": 5})
    assert (answer.status_code, answer.headers["x-error-code"]) == (400, "unknown_parameter")
    assert answer.headers["x-error-message"].startswith("widht    ")


def test_what_is_no_json_and_no_image(served):
    for content, kind in [(b"", None), (b"hello", None), (b"{", "application/json"), (b"\xff\xfe", "image/png")]:
        headers = {"content-type": kind} if kind else {}
        answer = httpx.post(f"{served.origin}{NAMED}", content=content, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["retryable"]) == (400, False)
    assert served.context.engine.ran == []


def test_an_answer_that_is_too_large_is_still_an_image(tmp_path):
    engine = FakeEngine(pixels=lambda job, seed: noise(256, 256))
    with WebWorker(tmp_path, engine=engine, max_response_mb=0.2) as served:
        answer = served.http.post(NAMED, json={"inputs": "x", "parameters": {"width": 256, "height": 256}})
    assert answer.status_code == 200
    assert Image.open(io.BytesIO(answer.content)).get_format_mimetype() == answer.headers["content-type"] != "image/png"


def test_the_list_of_models(served):
    listed = served.http.get("/diffusers/models").json()["models"]
    assert {entry["model_id"] for entry in listed} >= {"tiny", "org/sdxl"}
