"""F8: jobs that nobody should send: each gets a typed answer after little work, and none wakes the engine."""

import asyncio
import json
import math
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.counting import Count
from tests.fakes.engine import fresh_id, make_context
from worker.app.queue import build_door
from worker.catalog.interface.request_fields import common_fields
from worker.core import errors
from worker.core.job_input import ACTIONS
from worker.wire.request import ALIASES

CODES = {
    error.code
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.InvalidRequest | errors.AccessDenied)
}
TEXT_FIELDS = ["prompt", "negative_prompt", "model", "image", "task", "scheduler"]
NUMBER_FIELDS = ["seed", "num_images", "width", "height", "num_inference_steps", "guidance_scale", "timeout_s"]
OTHER_FIELDS = ["loras", "output", "lightning", "progress", "strength", "clip_skip", "sigmas", "eta", "action"]
FIELDS = sorted({*TEXT_FIELDS, *NUMBER_FIELDS, *OTHER_FIELDS, *ALIASES, *common_fields()})


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def circular():
    value = {}
    value["again"] = value
    return value


# What is wrong, and in which field.
CORPUS = [
    ({"": 2**64}, "input"),
    ({" ": 5}, "input"),
    ({"output": {"": 1}}, "output"),
    ({"loras": [{"model": "a/b", "": 1}]}, "loras"),
    *(({name: value}, name) for name in ("prompt", "model", "image", "task") for value in (True, 5, {})),
    ({"prompt": []}, "prompt"),
    *(({name: [5]}, name) for name in ("prompt", "model", "task")),
    *(({name: True}, name) for name in ("seed", "num_images", "width", "guidance_scale", "num_inference_steps")),
    *(({name: "8 or 9"}, name) for name in ("seed", "num_images", "height", "guidance_scale", "num_inference_steps")),
    *(({name: math.nan}, name) for name in ("seed", "width", "guidance_scale", "timeout_s", "strength")),
    *(({name: math.inf}, name) for name in ("num_inference_steps", "cfg_scale")),
    *(({name: -2}, name) for name in ("seed", "num_images", "width", "num_inference_steps", "timeout_s")),
    *(({name: 10**400}, name) for name in ("seed", "width", "eta")),
    ({"width": 8192, "height": 8192}, "width"),
    ({"num_inference_steps": 1_000_000}, "num_inference_steps"),
    ({"num_images": 1000}, "num_images"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "x" * 200_000}, "prompt"),
    ({"prompt": "\0"}, "prompt"),
    ({"prompt": "\ud83d"}, "prompt"),
    ({"negative_prompt": "\udfff"}, "negative_prompt"),
    ({"model": "\ud800"}, "model"),
    ({"model": "../../etc/passwd"}, "model"),
    ({"model": "/etc/passwd"}, "model"),
    ({"model": "__proto__"}, "model"),
    ({"scheduler": ["euler"]}, "scheduler"),
    ({"scheduler": "x" * 100_000}, "scheduler"),
    ({"image": "not base64 !"}, "image"),
    ({"image": "data:text/html;base64,aGk="}, "image"),
    ({"image": "file:///etc/passwd"}, "image"),
    ({"image": "A" * 30_000_000}, "image"),
    ({"image": "http://169.254.169.254/latest/meta-data"}, "image"),
    ({"loras": [{"model": "org/x", "weight": math.nan}]}, "loras"),
    ({"loras": "\0"}, "loras"),
    ({"loras": [[["org/x"]]]}, "loras"),
    ({"loras": [{"model": "/etc/passwd"}]}, "loras"),
    ({"output": {"format": "exe"}}, "output"),
    ({"output": {"delivery": "s3"}}, "output"),
    ({"sigmas": nested(5000)}, "sigmas"),
    ({"sigmas": list(range(100_000))}, "sigmas"),
    ({"eta": circular()}, "eta"),
    ({"eta": b"bytes"}, "eta"),
    ({"eta": {1: 2}}, "eta"),
    ({"custom_pipeline": "evil"}, "custom_pipeline"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"generator": 1}, "generator"),
    ({"latents": [1]}, "latents"),
    ({"callback_on_step_end": "os.system"}, "callback_on_step_end"),
    ({"cross_attention_kwargs": {"scale": 1}}, "cross_attention_kwargs"),
    ({"": 1}, None),
    ({"\ud800": 1}, None),
    ({"\0": 1}, None),
    ({"k" * 100_000: 1}, None),
    ({str(index): index for index in range(5000)}, "input"),
    ({"action": "rm -rf"}, "action"),
    ({"action": {}}, "action"),
    ({"steps": 5, "num_inference_steps": 5}, "num_inference_steps"),
]
JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(exclude_categories=()), max_size=40)
    | st.sampled_from(
        ["tiny", "any", "euler_a", "text-to-image", "image-to-image", "png", "\ud800", "\0", "org/x", "/"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
PAYLOADS = st.one_of(
    JSON_LIKE,
    st.builds(
        lambda fields: {"prompt": "x", **fields}, st.dictionaries(st.sampled_from(FIELDS), JSON_LIKE, max_size=4)
    ),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=12), JSON_LIKE, max_size=6),
    st.builds(lambda action, value: {"action": action, "model": value}, st.sampled_from(ACTIONS), JSON_LIKE),
)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    found = make_context(tmp_path_factory.mktemp("malformed"))
    # The first request reads the pipelines' signatures, as a worker does at its start.
    asyncio.run(found.accept())
    return found


@pytest.fixture(scope="module")
def door(context):
    return build_door(context.worker, concurrency=1)


def handled(loop, door, payload):
    """The answer, and the calls that it took; raises for what JSON is not."""
    before = loop.count.calls
    with loop.count:
        answer = loop.run_until_complete(door.handle({"id": fresh_id(), "input": payload}))
    calls = loop.count.calls - before
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    return answer, calls


@pytest.fixture
def loop():
    found = asyncio.new_event_loop()
    found.count = Count()
    # Jobs are looked at in a thread, whose calls count too.
    found.set_default_executor(ThreadPoolExecutor(1, initializer=found.count.listen))
    yield found
    found.run_until_complete(found.shutdown_default_executor())
    found.close()


def refused(answer, field):
    """Whether the answer says in a short sentence what is wrong with which field, and that it stays so."""
    is_typed = answer.get("code") in CODES and len(answer["error"]) < 1000 and answer["retryable"] is False
    return is_typed and (field is None or answer["field"] == field)


def p99(counts):
    return statistics.quantiles(counts, n=100)[98]


def test_every_hand_made_job_gets_a_typed_error_that_names_the_field(context, door, loop, figures):
    figures("F8", "malformed requests made by hand", len(CORPUS), at_least=60)
    counts, otherwise = [], []
    for fields, field in CORPUS:
        answer, calls = handled(loop, door, {"prompt": "x", **fields})
        counts.append(calls)
        if not refused(answer, field):
            otherwise.append((str(fields)[:80], answer))
    assert otherwise == []
    figures("F8", "made by hand: not refused by a type and the field's name", len(otherwise), at_most=0)
    figures("F8", "made by hand: models loaded", context.builder.built, at_most=0)
    assert statistics.median(counts) < 2_000


@pytest.mark.parametrize("payload", [None, [], "", 0, True, math.nan, b"x", circular(), {}, {"prompt": {}}])
def test_an_input_of_any_type_gets_a_typed_error(context, door, loop, payload):
    answer, _ = handled(loop, door, payload)
    assert answer["code"] in CODES
    assert answer["field"]
    assert context.builder.built == 0


def test_nothing_that_can_be_generated_is_unforeseen(context, loop, figures):
    """What is by chance a good job is drawn, by the fake; everything else must be refused before that."""
    door = build_door(context.worker, concurrency=1)
    counts, codes, otherwise = [], set(), []

    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(PAYLOADS)
    def check(payload):
        drawn = len(context.engine.ran)
        answer, calls = handled(loop, door, payload)
        if "error" not in answer:  # a good job, or a question, which may cost what its answer does
            return
        if len(context.engine.ran) == drawn:
            counts.append(calls)
        codes.add(answer["code"])
        is_named = answer["code"] not in CODES or (answer.get("field") and len(context.engine.ran) == drawn)
        if answer["code"] == "internal_error" or not answer["error"] or not is_named:
            otherwise.append((payload, answer))

    check()
    assert {"invalid_request", "parameter_out_of_range", "unknown_parameter"} <= codes
    assert otherwise == []
    figures("F8", "malformed requests that were generated", len(counts), at_least=300)
    figures("F8", "generated: not refused by a type and the field's name", len(otherwise), at_most=0)
    assert p99(counts) < 15_000
