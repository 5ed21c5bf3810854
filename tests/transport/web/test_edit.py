"""POST /edit: a form in, a PNG out, and three numbers for whatever goes wrong."""

import io

import pytest
from PIL import Image

from tests.fakes.web_worker import WebWorker
from tests.transport.web.uploads import png
from worker.core.errors import (
    DeviceLost,
    EngineFailure,
    InvalidOutput,
    JobTimeout,
    LoadFailed,
    OutOfMemory,
    Overloaded,
)

FORM = {"prompt": "make it blue"}


@pytest.fixture
def editing(tmp_path):
    with WebWorker(tmp_path, edit_model="tiny") as worker:
        yield worker


def files(data=None):
    return {"image": ("in.png", png(64, 72) if data is None else data, "image/png")}


def test_an_image_is_edited(editing):
    sent = {**FORM, "seed": "7", "guidance_scale": "2.5", "steps": "4"}
    answer = editing.http.post("/edit", data=sent, files=files())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-seed"] == "7"
    drawn = Image.open(io.BytesIO(answer.content))
    assert (drawn.format, drawn.size) == ("PNG", (64, 72))
    job = editing.context.engine.ran[0]
    assert (job.call.spec.id, job.prompt, job.seeds) == ("tiny", "make it blue", (7,))
    assert job.params["guidance_scale"] == 2.5
    assert job.params["num_inference_steps"] == 4


def test_a_number_as_prompt_is_a_text_and_an_empty_field_is_none(editing):
    answer = editing.http.post("/edit", data={"prompt": "42", "seed": "", "steps": " "}, files=files())
    assert answer.status_code == 200
    assert editing.context.engine.ran[0].prompt == "42"


def test_without_a_model_it_is_the_default_one(served):
    assert served.http.post("/edit", data=FORM, files=files()).status_code == 200
    assert served.http.post("/edit", data={**FORM, "model": "any"}, files=files()).status_code == 200
    assert [job.call.spec.id for job in served.context.engine.ran] == ["tiny", "any"]


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"model_id": "org/editor"}, "org/editor"),
        ({"model_id": "org/other"}, "org/other"),  # nobody knows what it is: it is tried, and nothing else
        ({"edit_model": "editor", "model_id": "tiny"}, "editor"),
    ],
)
def test_the_operators_model_is_taken_even_where_it_cannot_be_had(tmp_path, settings, model):
    with WebWorker(tmp_path, **settings) as served:
        answer = served.http.post("/edit", data=FORM, files=files())
    assert (answer.status_code, answer.json()["error"]) == (503, "source_unavailable")
    assert model in answer.json()["detail"]


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"data": FORM}, "unsupported_media_type"),
        ({"files": {"prompt": (None, "x")}}, "invalid_request"),
        ({"files": files()}, "invalid_request"),
        ({"data": {"prompt": " "}, "files": files()}, "invalid_request"),
        ({"data": FORM, "files": files(b"no image")}, "invalid_image"),
        ({"data": FORM, "files": [*files().items(), *files().items()]}, "invalid_request"),
        ({"data": FORM, "files": {**files(), "extra": ("x", b"x")}}, "invalid_request"),
        ({"data": {**FORM, "seed": "many"}, "files": files()}, "parameter_out_of_range"),
        ({"data": {**FORM, "steps": "NaN"}, "files": files()}, "parameter_out_of_range"),
        ({"data": {**FORM, "strenght": "1"}, "files": files()}, "unknown_parameter"),
        ({"data": {**FORM, "model": "nope"}, "files": files()}, "model_not_found"),
        ({"json": FORM}, "unsupported_media_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "invalid_request"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}}, "invalid_request"),
        (
            {
                "content": b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--a--\r\n',
                "headers": {"content-type": "multipart/form-data; boundary=a; charset=zlib"},
            },
            "unknown_parameter",
        ),
    ],
)
def test_what_cannot_be_read_is_400_in_this_doors_shape_and_nothing_runs(editing, sent, code):
    answer = editing.http.post("/edit", **sent)
    assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert set(answer.json()) == {"error", "detail", "request_id"}
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert editing.context.builder.built == 0


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (OutOfMemory("Too little memory."), 503, "gpu_oom"),
        (JobTimeout("Too long."), 504, "timeout"),
        (EngineFailure("It broke."), 503, "inference_error"),
        (LoadFailed("It does not load."), 503, "inference_error"),
        (InvalidOutput("All black."), 503, "inference_error"),
        (DeviceLost("No device."), 503, "inference_error"),
        (Overloaded("Busy.", details={"retry_after_s": 3}), 503, "overloaded"),
        (ValueError("odd"), 503, "inference_error"),
    ],
)
def test_what_fails_later_is_503_or_504(editing, failure, status, code):
    editing.context.engine.failures = [failure]
    answer = editing.http.post("/edit", data=FORM, files=files())
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert "odd" not in answer.text
    assert answer.headers.get("retry-after") == ("3" if isinstance(failure, Overloaded) else None)


def test_a_form_that_is_too_large_is_read_no_further(tmp_path):
    with WebWorker(tmp_path, edit_model="tiny", max_body_mb=0.05) as served:
        answer = served.http.post("/edit", data=FORM, files=files(b"x" * 100_000))
        assert (answer.status_code, answer.json()["error"]) == (400, "request_too_large")

        def chunks():  # without a length
            yield b'--a\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 1_000

        headers = {"content-type": "multipart/form-data; boundary=a"}
        answer = served.http.post("/edit", content=chunks(), headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "request_too_large")
        assert served.context.builder.built == 0


def test_without_a_default_model_that_takes_images_the_answer_says_what_to_do(tmp_path):
    with WebWorker(tmp_path, default_model="video") as served:
        answer = served.http.post("/edit", data=FORM, files=files())
    assert (answer.status_code, answer.json()["error"]) == (400, "model_not_found")
    assert "EDIT_MODEL" in answer.json()["detail"]


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    ("name", "data", "kind", "code"),
    [
        ("notes.txt", b"plain words", "text/plain", "invalid_file"),
        ("page.pdf", b"%PDF-1.7", "application/pdf", "invalid_file"),
        ("sound.wav", b"RIFF\0\0\0\0WAVE", "application/octet-stream", "invalid_file"),
        ("photo.heic", b"\0\0\0\x18ftypheic", "image/heic", "invalid_file"),
        ("in.png", b"no image", "image/png", "invalid_image"),
        ("in.bmp", b"BM broken", "application/octet-stream", "invalid_image"),
        ("in.jpg", b"\xff\xd8\xffbroken", "application/octet-stream", "invalid_image"),
        ("in.webp", b"RIFF\0\0\0\0WEBP", "text/plain", "invalid_image"),
        ("in.png", b"", "image/png", "invalid_image"),
    ],
)
def test_a_file_of_another_type_is_told_from_a_damaged_image(editing, name, data, kind, code):
    answer = editing.http.post("/edit", data=FORM, files={"image": (name, data, kind)})
    assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert answer.json()["detail"].startswith("image is ")
    assert editing.context.builder.built == 0


def test_an_image_is_taken_whatever_its_file_is_called(editing):
    sent = {"image": ("notes.txt", png(64, 64), "text/plain")}
    assert editing.http.post("/edit", data=FORM, files=sent).status_code == 200


def test_its_sentences_speak_of_its_own_fields_and_paths(served):
    def sentence(**fields):
        answer = served.http.post(
            "/edit", files={"image": png(64, 64)}, data={"prompt": "x", "model": "tiny", **fields}
        )
        assert answer.status_code == 400
        return answer.json()["detail"]

    for value in ("-1", "1000", "x", "2.5"):
        assert sentence(steps=value).startswith("steps must be"), value
    assert sentence(guidance_scale="99").startswith("guidance_scale must be")
    assert "action" not in sentence(model="nope")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_wrong_method_is_answered_in_its_shape_too(served, method):
    answer = served.http.request(method, "/edit")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json().keys() == {"error", "detail", "request_id"}
    assert answer.json()["error"] == "method_not_allowed"
    answer = served.http.request(method, "/v1/images/edits")  # as at the other doors with a shape of their own
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
