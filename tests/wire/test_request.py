"""The JSON of the door: aliases, what is refused and in which words, and the shapes of answers."""

import json
from pathlib import Path

import pytest

from tests.asking import perform
from tests.fakes.engine import fresh_id, make_context
from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.request_fields import request_fields, spread
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter, WorkerError
from worker.core.finishing import UpscaleSpec
from worker.wire.errors import encode_error
from worker.wire.request import ALIASES, decode_envelope, decode_generation

RECORDED = Path(__file__).parent / "requests.jsonl"


def decoded(payload):
    return decode_generation(decode_envelope(payload).fields)


async def refusal(context, payload):
    """The error that a payload gets; nothing may have been built for it."""
    with pytest.raises(WorkerError) as failure:
        await perform(context.worker, payload, fresh_id(), lambda progress: None)
    assert context.builder.built == 0
    return failure.value


@pytest.mark.parametrize(
    ("alias", "value", "canonical", "expected"),
    [
        ("model_id", "tiny", "model", "tiny"),
        ("mask", "abcd", "mask_image", "abcd"),
        ("video_url", "https://example.com/a.mp4", "video", ("https://example.com/a.mp4",)),
        ("video_base64", "abcd", "video", ("abcd",)),
        ("image_url", "https://example.com/a.png", "image", "https://example.com/a.png"),
        ("image_base64", "abcd", "image", "abcd"),
        ("init_image", "abcd", "image", "abcd"),
        ("steps", 9, "num_inference_steps", 9),
        ("cfg_scale", 4.5, "guidance_scale", 4.5),
        ("guidance", 4.5, "guidance_scale", 4.5),
        ("num_images_per_prompt", 2, "num_images", 2),
        ("n", 2, "num_images", 2),
        ("num_outputs", 2, "num_images", 2),
        ("sampler", "euler_a", "scheduler", "euler_a"),
        ("sampler_name", "dpmpp_2m", "scheduler", "dpmpp_2m"),
        ("schedule_type", "Karras", "schedule", "Karras"),
        ("flow_shift", 3.0, "shift", 3.0),
        ("lora", "org/style", "loras", "org/style"),
        ("controlnet", {"model": "org/edges", "image": "abcd"}, "controlnets", "org/edges"),
        ("ip_adapter", {"model": "org/ip", "image": "abcd"}, "ip_adapters", "org/ip"),
        ("embedding", "org/word", "embeddings", "org/word"),
        ("hypernetwork", "org/paint", "hypernetworks", "org/paint"),
        ("upscaler", "org/large", "upscale", UpscaleSpec(model="org/large")),
    ],
)
def test_an_alias_says_what_the_canonical_name_says(alias, value, canonical, expected):
    through_alias = decoded({"prompt": "x", alias: value})
    assert through_alias == decoded({"prompt": "x", canonical: value})
    if canonical in ADAPTERS:
        assert [(spec.field, spec.model) for spec in through_alias.adapters] == [(canonical, expected)]
    else:
        assert (getattr(through_alias, canonical, None) or through_alias.params.get(canonical)) == expected
    with pytest.raises(InvalidRequest, match=f"{canonical} and {alias} mean the same") as failure:
        decoded({"prompt": "x", canonical: value, alias: value})
    assert failure.value.field == alias


def test_every_alias_has_a_row_above():
    rows = test_an_alias_says_what_the_canonical_name_says.pytestmark[0].args[1]
    assert {row[0]: row[2] for row in rows} == dict(ALIASES)


@pytest.mark.parametrize(
    ("sent", "near"),
    [
        ({"widht": 64}, "width"),
        ({"num_inference_step": 4}, "num_inference_steps"),
        ({"step": 4}, "steps"),
        ({"negativ_prompt": "x"}, "negative_prompt"),
        ({"Prompt": "x"}, "prompt"),
        ({"output": {"fromat": "png"}}, "format"),
        ({"loras": [{"model": "org/x", "wieght": 1}]}, "weight"),
        ({"loras": [{"modle": "org/x"}]}, "model"),
    ],
)
async def test_an_unknown_key_is_refused_with_the_nearest_name(context, sent, near):
    error = await refusal(context, {"prompt": "x", **sent})
    assert isinstance(error, UnknownParameter)
    assert f"did you mean {near}?" in error.message
    assert error.field == next(iter(sent))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"prompt": 5}, "prompt must be a text; 5 was sent."),
        ({"prompt": ["x"]}, "prompt must be a text; a list was sent."),
        ({"prompt": "x" * 8001}, "prompt must be at most 8000 characters long; 8001 characters were sent."),
        ({"prompt": "\ud800"}, "prompt must be valid UTF-8 text"),
        ({"prompt": "a\0b"}, "prompt holds a NUL"),
        ({"negative_prompt": {}}, "negative_prompt must be a text; an object was sent."),
        ({"negative_prompt": "a\0b"}, "negative_prompt holds a NUL"),
        ({"model": 5}, "model must be a text; 5 was sent."),
        ({"model": "m" * 513}, "model must be at most 512 characters long; 513 characters were sent."),
        ({"task": "text2image"}, "task must be one of text-to-image, image-to-image"),
        ({"task": 5}, "task must be one of text-to-image"),
        ({"image": 5}, "image must be a text; 5 was sent."),
        ({"image": "@@"}, "image is neither base64, a data: URI nor an https URL"),
        ({"seed": True}, "seed must be an integer; true was sent."),
        ({"seed": 1.5}, "seed must be an integer; 1.5 was sent."),
        ({"seed": "one"}, 'seed must be an integer; "one" was sent.'),
        ({"seed": -2}, "seed must be 0 or more; -2 was sent."),
        ({"seed": 2**63}, "seed must be at most 9223372036854775807; 9223372036854775808 was sent."),
        ({"num_images": True}, "num_images must be an integer; true was sent."),
        ({"num_images": -1}, "num_images must be 1 or more; -1 was sent."),
        ({"num_images": 9}, "num_images must be between 1 and 8; 9 was sent."),
        ({"lightning": 1}, "lightning must be true or false; 1 was sent."),
        ({"progress": "yes"}, 'progress must be true or false; "yes" was sent.'),
        ({"timeout_s": -1}, "timeout_s must be more than 0; -1 was sent."),
        ({"timeout_s": True}, "timeout_s must be a number; true was sent."),
        ({"loras": [5]}, "loras[0] must be an object; 5 was sent."),
        ({"loras": [{}]}, "loras[0].model is missing; add it."),
        ({"loras": [{"model": "org/x", "weight": "much"}]}, 'loras[0].weight must be a number; "much" was sent.'),
        ({"loras": [{"model": "org/x", "weight": 99}]}, "loras[0].weight must be at most 10; 99 was sent."),
        ({"loras": ["org/x"] * 9}, "loras may hold at most 8 entries; 9 were sent."),
        ({"embeddings": ["org/x"] * 17}, "embeddings must be a list of at most 16; 17 were sent."),
        ({"output": "png"}, 'output must be an object; "png" was sent.'),
        ({"output": {"format": "bmp"}}, 'output.format must be one of png, jpeg, webp, gif or mp4; "bmp" was sent.'),
        ({"output": {"format": "gif"}}, "output.format of text-to-image must be one of png, jpeg, webp; gif is not"),
        ({"mask_image": "abcd"}, "task inpainting (a mask_image was sent) is not one of tiny"),
        ({"images": [5]}, "images[0] must be a text; 5 was sent."),
        ({"video": 5}, "video must be a list; 5 was sent."),
        ({"video": ["a", 5]}, "video[1] must be a text; 5 was sent."),
        ({"output": {"quality": 101}}, "output.quality must be at most 100; 101 was sent."),
        ({"output": {"metadata": 1}}, "output.metadata must be true or false; 1 was sent."),
        ({"width": True}, "width must be a multiple of 8 between 32 and 256; true was sent"),
        ({"width": "wide"}, "width must be a multiple of 8"),
        ({"width": 63}, "(nearest: 64)"),
        ({"num_inference_steps": True}, "num_inference_steps must be an integer between 1 and"),
        ({"num_inference_steps": 10**6}, "num_inference_steps must be an integer between 1 and"),
        ({"guidance_scale": True}, "guidance_scale must be a number between 0 and 30; true was sent."),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"cfg_scale": float("-inf")}, "cfg_scale must be a finite number"),
        ({"scheduler": 5}, "scheduler must be text of at most 64 characters; 5 was sent."),
        ({"clip_skip": "\ud800"}, "clip_skip must be an integer"),
        ({"seed": 10**5000}, "seed must be a number of at most 64 bits"),
        ({"sigmas": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, "sigmas is nested more than 16 deep; flatten it."),
        ({"sigmas": [0] * 20_000}, "sigmas has too many parts; at most 10,000 are taken."),
        ({"sigmas": b"raw"}, "sigmas holds something that JSON does not have"),
        ({f"k{index}": 1 for index in range(201)}, "input may hold at most 200 named fields."),
    ],
)
async def test_a_bad_value_gets_a_sentence_that_names_the_field(context, sent, message):
    error = await refusal(context, {"prompt": "x", **sent})
    assert message in error.message
    assert isinstance(error, InvalidRequest)
    assert error.field in {*sent, "input"}
    assert error.message.endswith(".")
    assert "Input should" not in error.message


async def test_a_close_miss_among_fixed_values_gets_a_hint(context):
    assert (await refusal(context, {"prompt": "x", "output": {"format": "jepg"}})).hint == "Did you mean jpeg?"
    assert (await refusal(context, {"prompt": "x", "task": "txt-to-image"})).hint == "Did you mean text-to-image?"


@pytest.mark.parametrize(
    ("payload", "kind"), [(None, "nothing"), ([], "a list"), ("x", "a text"), (5, "a number"), (True, "true or false")]
)
async def test_an_input_that_is_no_object_is_refused(context, payload, kind):
    error = await refusal(context, payload)
    assert error.message == f"input must be a JSON object; {kind} was sent."
    assert error.field == "input"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("modles", 'action "modles" is not known; did you mean models?'),
        ("Generate", "did you mean generate?"),
        ("zzz", "it is one of generate, models"),
        (["generate"], "action must be a text; a list was sent."),
        ("\ud800", "is not known"),
    ],
)
async def test_an_unknown_action_is_refused_with_the_nearest(context, action, message):
    error = await refusal(context, {"action": action})
    assert message in error.message
    assert error.field == "action"


@pytest.mark.parametrize("action", ["models", "status", "schema", "inspect", "plan", "preload", "unload"])
async def test_actions_refuse_fields_that_they_do_not_take(context, action):
    error = await refusal(context, {"action": action, "prompt": "x"})
    assert (error.code, error.field) == ("unknown_parameter", "prompt")


@pytest.mark.parametrize("action", ["schema", "inspect", "plan", "preload", "unload"])
async def test_actions_refuse_a_model_that_is_no_text(context, action):
    error = await refusal(context, {"action": action, "model_id": 5})
    assert error.message == "model must be a text; 5 was sent."


async def test_null_is_as_if_a_field_were_left_out(context):
    nothing = dict.fromkeys(("action", "model", "negative_prompt", "image", "seed", "loras", "width", "task"))
    assert (await context.draw(**nothing))["task"] == "text-to-image"
    with pytest.raises(InvalidRequest, match="prompt is required"):
        await context.draw(prompt=None)


def test_a_list_of_one_image_is_that_image():
    assert decoded({"image": ["a"]}) == decoded({"image": "a"})
    assert decoded({"image": ["a"], "images": ["b"]}) == decoded({"image": "a", "images": ["b"]})
    assert decoded({"image": ["a", "b"]}) == decoded({"images": ["a", "b"]})
    assert decoded({"image": []}) == decoded({})


def test_a_whole_number_may_have_a_point():
    sent = {"seed": 7.0, "num_images": 2.0, "output": {"quality": 80.0}, "outpaint": {"left": 8.0}, "timeout_s": 5.0}
    assert decoded(sent) == decoded(json.loads(json.dumps(sent).replace(".0", "")))
    with pytest.raises(ParameterOutOfRange, match="seed must be an integer"):
        decoded({"seed": 7.5})


@pytest.mark.parametrize("line", RECORDED.read_text().splitlines())
async def test_recorded_requests_are_still_taken(tmp_path, line):
    record = json.loads(line)
    context = make_context(tmp_path, allow_unregistered_models=True)
    job = await context.accept(**record["input"])
    taken = {
        "task": job.call.task,
        "lightning": job.call.lightning,
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "model": job.call.spec.id,
        "seeds": [*job.seeds],
        "loras": [[lora.spec.model, lora.spec.weight] for lora in job.adapters],
    }
    taken |= {"scheduler": job.scheduler.name if job.scheduler else None, "output": job.output.model_dump()}
    taken |= {"schedule": job.scheduler.schedule if job.scheduler else None}
    for name, value in record["means"].items():
        assert (taken | dict(job.params))[name] == value, name


async def test_the_result_has_every_key_of_the_contract(context):
    answer = await context.draw(seed=4, num_images=2, sampler="euler_a")
    assert set(answer) == {
        *("images", "seed", "seeds", "model", "revision", "task", "prompt", "width", "height"),
        *(
            "num_inference_steps",
            "parameters",
            "format",
            "loras",
            "adapters",
            "safety",
            "timings",
            "usage",
            "reproduce",
            "quality",
            "levers",
            "warnings",
        ),
    }
    assert len(answer["images"]) == 2
    assert not answer["images"][0].startswith("data:")
    assert (answer["seed"], answer["seeds"]) == (4, [4, 5])
    assert (answer["width"], answer["height"], answer["num_inference_steps"]) == (64, 64, 5)
    assert answer["parameters"]["scheduler"] == "EulerAncestralDiscreteScheduler"
    assert set(answer["timings"]) == {"queue_s", "download_s", "load_s", "inference_s", "encode_s", "batch_size"}
    assert answer["usage"]["images"] == 2
    assert answer["usage"]["pixel_steps"] == 64 * 64 * 5 * 2
    assert set(answer["usage"]) == {
        *("gpu_seconds", "images", "pixel_steps", "peak_memory_gb", "bytes_downloaded", "cost_usd")
    }
    assert set(answer["reproduce"]) == {"model", "loras", "versions", "input"}
    json.dumps(answer, allow_nan=False)


async def test_lightning_is_told_and_can_be_switched_off(context):
    assert (await context.accept(model="fast")).call.lightning
    assert not (await context.accept(model="fast", lightning=False)).call.lightning
    error = await refusal(context, {"prompt": "x", "lightning": True})
    assert error.field == "lightning"
    assert "leave it out" in error.message


def test_the_error_has_the_shape_of_the_contract():
    error = ParameterOutOfRange("width is 5.", field="width", hint="Use 64.", details={"limit": 8, "bad": float("nan")})
    assert encode_error(error, "job-1") == {
        "error": "width is 5.",
        "code": "parameter_out_of_range",
        "field": "width",
        "hint": "Use 64.",
        "retryable": False,
        "details": {"limit": 8, "bad": None},
        "request_id": "job-1",
    }


def test_no_broken_text_leaves_in_an_error():
    error = InvalidRequest("\ud800", field="\udfff", hint="\ud800", details={"\ud800": ["\ud800", b"x"]})
    json.dumps(encode_error(error, "\ud800"), ensure_ascii=False).encode()
    assert encode_error(InvalidRequest(""), "x")["error"]


def test_adapters_come_in_one_tuple_kind_by_kind():
    sent = {"vae": "org/vae", "embeddings": ["org/word"], "loras": ["org/b", {"model": "org/a", "weight": 0.5}]}
    request = decoded({"prompt": "x", **sent})
    named = [(spec.field, spec.model) for spec in request.adapters]
    assert named == [("loras", "org/b"), ("loras", "org/a"), ("embeddings", "org/word"), ("vae", "org/vae")]


def test_fields_are_what_they_were_after_a_request_was_made_of_them():
    sent = {"prompt": "x", "loras": ["org/b"], "controlnets": [{"model": "org/c", "scale": 0.5}], "vae": "org/vae"}
    fields = spread(decoded(sent))
    assert fields.model_dump(mode="json", exclude_defaults=True) == sent | {"loras": [{"model": "org/b"}]}
    assert decoded(fields.model_dump(mode="json", exclude_defaults=True)) == decoded(sent)
    assert type(fields) is request_fields()
