"""What clients send for fields that nobody set, and values in another spelling than the field's own."""

import pytest

from worker.catalog.interface.request_fields import request_fields
from worker.core.errors import InvalidRequest, ParameterOutOfRange, WorkerError
from worker.wire.request import ALIASES, decode_envelope, decode_generation, decode_input, input_of

PLAIN = {"prompt": "x", "seed": 7}
# Fields whose empty text or false says something of its own.
_PROMPTS = ("prompt", "negative_prompt")


def decoded(payload):
    return decode_generation(decode_envelope(payload).fields)


@pytest.mark.parametrize("name", [*request_fields().model_fields, *ALIASES, "width", "scheduler", "last_image", "new"])
def test_nothing_in_any_field_is_as_if_it_were_left_out(name):
    blanks = [None, []] if name in _PROMPTS else [None, [], "", " \n"]
    rest = {key: value for key, value in PLAIN.items() if key != name}
    for blank in blanks:
        assert decoded({**rest, name: blank}) == decoded(rest), blank


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_nothing_under_one_name_leaves_the_other_name_to_speak(name):
    value = {"loras": "org/x", "controlnets": {"model": "org/x"}, "ip_adapters": {"model": "org/x", "image": "a"}}
    said = value.get(ALIASES[name], 3 if ALIASES[name] in ("num_images", "num_inference_steps", "shift") else "abcd")
    if ALIASES[name] == "guidance_scale":
        said = 3
    for blank in (None, "", []):
        assert decoded({**PLAIN, name: blank, ALIASES[name]: said}) == decoded({**PLAIN, ALIASES[name]: said})
        assert decoded({**PLAIN, ALIASES[name]: blank, name: said}) == decoded({**PLAIN, name: said})


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"output": {"format": "jpeg", "quality": None}}, {"output": {"format": "jpeg"}}),
        ({"output": {"format": "", "quality": 0, "delivery": None}}, {}),
        ({"output": None, "s3Config": {"endpointUrl": "", "bucketName": "", "accessId": "", "accessSecret": ""}}, {}),
        ({"outpaint": {"left": 8, "top": None}}, {"outpaint": {"left": 8}}),
        ({"refiner": {"model": "", "start": 0}}, {}),
        ({"refiner": {"model": "org/x", "start": None}}, {"refiner": "org/x"}),
        ({"upscale": {"model": "org/x", "scale": 0, "tile": 0}}, {"upscale": "org/x"}),
        ({"loras": [None, "", {"model": "org/x", "name": "", "weight": None, "weights": {}}]}, {"loras": ["org/x"]}),
        ({"loras": [{"model": "org/x", "weight": 0}]}, {"loras": [{"model": "org/x", "weight": 0.0}]}),
        ({"controlnet": {"model": "org/x", "image": "", "mode": None}}, {"controlnets": ["org/x"]}),
        ({"ip_adapter": {"model": "o/x", "images": ["", "a"]}}, {"ip_adapter": {"model": "o/x", "images": ["a"]}}),
        ({"embedding": {"model": "org/x", "token": ""}}, {"embeddings": "org/x"}),
        ({"image": [None]}, {}),
        ({"images": ["", None]}, {}),
        ({"image": ["a", None], "images": [""]}, {"image": "a"}),
        ({"video": [None], "control_images": [""]}, {}),
        ({"width": 0, "height": 0, "num_inference_steps": 0, "shift": 0, "num_frames": 0, "fps": 0}, {}),
        ({"width": "0", "steps": "0", "n": 0, "timeout_s": 0.0}, {}),
        ({"steps": 0, "num_inference_steps": 9}, {"steps": 9}),
        ({"guidance_scale": 0, "strength": 0, "eta": 0, "clip_skip": 0}, None),  # these may be 0
    ],
)  # fmt: skip
def test_blanks_inside_and_zeros_of_clients_that_send_every_field(sent, meant):
    request = decoded({**PLAIN, **sent})
    if meant is None:
        assert request.params == sent
    else:
        assert request == decoded({**PLAIN, **meant})


@pytest.mark.parametrize("name", ["control_images", "video"])
def test_a_gap_among_entries_that_belong_to_others_is_no_blank(name):
    with pytest.raises(ParameterOutOfRange, match=rf"{name}\[0\] must be a text; null was sent"):
        decoded({**PLAIN, name: [None, "abcd"]})


@pytest.mark.parametrize("sent", [{"negative_prompt": {}}, {"loras": [{}]}, {"loras": [{"model": ""}]}, {"seed": {}}])
def test_an_object_where_none_belongs_and_an_entry_without_its_model_are_refused(sent):
    with pytest.raises(ParameterOutOfRange):
        decoded({**PLAIN, **sent})


@pytest.mark.parametrize("seed", [-1, -1.0, "-1", " -1 "])
def test_the_seed_minus_one_is_any(seed):
    assert decoded({"prompt": "x", "seed": seed}).seed is None
    with pytest.raises(ParameterOutOfRange) as failure:
        decoded({"prompt": "x", "seed": -2})
    assert "leave" in (failure.value.hint or "").lower()


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"seed": "42"}, {"seed": 42}),
        ({"seed": "9223372036854775807"}, {"seed": 2**63 - 1}),
        ({"seed": "42.0", "n": " 2 "}, {"seed": 42, "n": 2}),
        ({"timeout_s": "1e2"}, {"timeout_s": 100}),
        ({"output": {"quality": "80", "metadata": "true"}}, {"output": {"quality": 80, "metadata": True}}),
        ({"loras": [{"model": "org/x", "weight": "0.5"}]}, {"loras": [{"model": "org/x", "weight": 0.5}]}),
        ({"loras": [{"model": "o/x", "weights": {"a": "-1"}}]}, {"loras": [{"model": "o/x", "weights": {"a": -1}}]}),
        ({"outpaint": {"left": "8"}}, {"outpaint": {"left": 8}}),
        ({"lightning": "False", "progress": "true"}, {"lightning": False, "progress": True}),
    ],
)  # fmt: skip
def test_numbers_and_truth_values_are_read_out_of_texts(sent, meant):
    assert decoded({**PLAIN, **sent}) == decoded({**PLAIN, **meant})


@pytest.mark.parametrize("text", ["4,2", "1_000", "0x10", "١٢", "NaN", "inf", "42px", "4 2", "true", "9" * 41])
def test_a_text_that_may_mean_something_else_is_no_number(text):
    with pytest.raises(ParameterOutOfRange, match="seed must be an integer"):
        decoded({"prompt": "x", "seed": text})


def test_a_text_that_belongs_to_a_text_stays_one():
    request = decoded({"prompt": "42", "negative_prompt": "true", "model": "7", "loras": [{"model": "1", "name": "2"}]})
    assert (request.prompt, request.negative_prompt, request.model) == ("42", "true", "7")
    assert (request.adapters[0].model, request.adapters[0].name) == ("1", "2")


async def test_parameters_of_the_models_own_schema_are_read_out_of_texts(context):
    job = await context.accept(width="64", height="72.0", steps="5", guidance_scale="4.5", clip_skip="1")
    assert [job.params[name] for name in ("width", "height", "num_inference_steps", "guidance_scale", "clip_skip")] == [
        *(64, 72, 5, 4.5, 1)
    ]
    with pytest.raises(ParameterOutOfRange, match=r"width must be a multiple of 8 .* 65 was sent \(nearest: 64\)"):
        await context.accept(width="65")
    with pytest.raises(ParameterOutOfRange, match='"half" was sent'):
        await context.accept(width="half")


async def test_zeros_of_a_client_that_sends_every_field_draw_as_if_they_were_not_there(context):
    plain = await context.accept(seed=7)
    job = await context.accept(
        seed=7, width=0, height=0, num_inference_steps=0, image_url="", image_base64=None, scheduler="", num_images=0
    )
    assert (job.params, job.call.task, job.seeds) == (plain.params, plain.call.task, plain.seeds)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"url": "https://a.example/x.png"}, "https://a.example/x.png"),
        ({"url": "abcd", "detail": "high"}, "abcd"),
        ({"type": "image_url", "image_url": {"url": "abcd"}}, "abcd"),
        ({"image_url": "abcd"}, "abcd"),
        ({"b64_json": "abcd", "url": None}, "abcd"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "abcd"}}, "abcd"),
        ({"name": "a.png", "image": "abcd"}, "abcd"),
    ],
)
def test_an_image_inside_an_object_is_that_image(image, text):
    assert decoded({"image": image}) == decoded({"image": text})
    assert decoded({"images": [image, "b"]}) == decoded({"images": [text, "b"]})
    assert decoded({"image": [image]}) == decoded({"image": text})
    for name in ("mask", "control_image", "image_url", "init_image", "video", "last_image"):
        assert decoded({name: image}) == decoded({name: text}), name
    for kind in ("controlnet", "ip_adapter"):
        assert decoded({kind: {"model": "o/x", "image": image}}) == decoded({kind: {"model": "o/x", "image": text}})
    assert decoded({"ip_adapter": {"model": "o/x", "images": [image]}}) == decoded(
        {"ip_adapter": {"model": "o/x", "images": [text]}}
    )


@pytest.mark.parametrize(
    "image", [{"file_id": "f"}, {"url": "a", "b64_json": "b"}, {"url": 5}, {"url": "a", "x": 1}, {}]
)
def test_an_object_of_another_form_is_refused(image):
    with pytest.raises(ParameterOutOfRange, match="image must be a text; an object was sent") as failure:
        decoded({"image": image})
    assert '{"url": "…"}' in str(failure.value.hint)


@pytest.mark.parametrize("action", ["generate", "inspect", None])
def test_one_wrapper_too_many_is_told(action):
    with pytest.raises(InvalidRequest, match="one wrapper too many") as failure:
        decode_envelope({"action": action, "input": {"prompt": "x"}})
    assert failure.value.field == "input"


def test_an_action_reads_its_model_through_blanks():
    assert decode_input({"action": "inspect", "model": "demo", "model_id": None}).request.model == "demo"
    assert decode_input({"action": "", "traceparent": "", **PLAIN}).request == decoded(PLAIN)
    assert not isinstance(decode_input({"action": "status", "prompt": None}).request, WorkerError)


def test_an_empty_bucket_beside_the_input_is_none_and_one_inside_leaves_the_other():
    bucket = {"endpointUrl": "https://s.example", "bucketName": "abc", "accessId": "a", "accessSecret": "b"}
    assert input_of({"input": PLAIN, "s3Config": {}}) == PLAIN
    assert decoded(input_of({"input": {**PLAIN, "s3Config": None}, "s3Config": bucket})).s3Config is not None
