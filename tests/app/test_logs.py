"""What is logged: lines for people or programs with their request's id, and no word, image or key of anybody's."""

import base64
import io
import json
import logging

import pytest
from PIL import Image

from tests.fakes.engine import make_context
from tests.fakes.web_worker import WebWorker
from worker.app.logs import JsonFormatter, TextFormatter
from worker.app.queue import build_door
from worker.app.settings import Settings
from worker.core.errors import OutOfMemory
from worker.service.usage import privacy, request_id
from worker.service.usage.privacy import keep_always, kept, redact
from worker.service.usage.request_id import RequestIdFilter

PROMPT = 'a canary-prompt "in quotes" on the branch of an unlikely tree, ünlike others'
OPERATORS_TOKEN = "hf_canaryTokenOfTheOperator42"
CALLERS_KEY = "sk-canaryKeyOfTheCaller4711"
CANARIES = (
    "canary-prompt",
    "canaryToken",
    "canaryKey",
    "canaryAccess",
    "the branch of an unlikely",
    "nlikely tree",
    "nlike others",
)


@pytest.fixture
def log():
    """All lines of all levels, as both formatters write them."""
    root, found = logging.getLogger(), io.StringIO()
    handlers = [logging.StreamHandler(found) for _ in range(2)]
    for handler, formatter in zip(handlers, (JsonFormatter(), TextFormatter("%(message)s")), strict=True):
        handler.setFormatter(formatter)
        handler.addFilter(RequestIdFilter())
        root.addHandler(handler)
    before = root.level
    root.setLevel(logging.DEBUG)
    yield found
    root.setLevel(before)
    for handler in handlers:
        root.removeHandler(handler)


def lines(log):
    """The JSON lines."""
    return [json.loads(line) for line in log.getvalue().splitlines() if line.startswith('{"time"')]


def files_below(folder):
    return {path: path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()}


def failures(image):
    """What libraries say of what they choke on: whole, shortened, quoted, and as they got it."""
    return [
        ValueError(f"cannot use {PROMPT}"),
        RuntimeError(f"got {PROMPT[:40]}…"),
        KeyError(PROMPT),
        TypeError(f"of a strange kind: {image}"),
        OSError(f"https://host/file?key={CALLERS_KEY} with Authorization: Bearer {CALLERS_KEY}"),
        PermissionError(f"{OPERATORS_TOKEN} was refused"),
        OutOfMemory("Too large."),
    ]


def test_no_log_line_file_or_number_holds_a_word_a_key_or_an_image(tmp_path, log, capfd):
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(noise, "PNG")
    image = base64.b64encode(noise.getvalue()).decode()
    keep_always([OPERATORS_TOKEN])
    bucket = {"endpointUrl": "https://s3.example", "bucketName": "results", "accessId": "canaryAccess"}
    jobs = [
        {},
        {"widht": 64},
        {"model": "nobody/knows"},
        {"image": image, "strength": 0.5},
        {"image": image[:-7] + "!canary"},
        {"s3Config": bucket | {"accessSecret": CALLERS_KEY}},
        {"prompt": {"text": PROMPT}},
    ]
    outputs, answers = tmp_path / "written", []
    with WebWorker(outputs, hf_token=OPERATORS_TOKEN, gpu_price_per_hour=1) as served:
        before = files_below(outputs)
        raised = failures(image)
        for extra in [*jobs, *({} for _ in raised)]:
            if extra == {} and answers[: len(jobs)] and len(answers) >= len(jobs):
                served.context.engine.failures = [raised[len(answers) - len(jobs)]]
            body = {"prompt": PROMPT, "negative_prompt": f"no {PROMPT}", **extra}
            headers = {"Authorization": f"Bearer {CALLERS_KEY}"}
            answers.append(served.http.post("/run", json=body, headers=headers).json())
        numbers = served.http.get("/metrics").text
    codes = [answer.get("code", "ok") for answer in answers]
    assert codes[:5] == ["ok", "unknown_parameter", "model_not_found", "ok", "invalid_image"]
    assert codes[len(jobs) :] == ["internal_error"] * 6 + ["gpu_oom"]
    assert log.getvalue().count("unforeseen") >= 12  # what failed is told, in both formats
    assert "cannot use [private]" in log.getvalue()

    written = {path: text for path, text in files_below(outputs).items() if path not in before}
    assert any(path.suffix == ".jsonl" for path in written)
    out, err = capfd.readouterr()
    for place in (log.getvalue(), numbers, out, err, *written.values()):
        for canary in (*CANARIES, image[:40], image[200:240]):
            assert canary not in place, canary


async def test_the_queues_door_is_as_silent(tmp_path, log):
    context = make_context(tmp_path)
    door = build_door(context.worker, concurrency=1)
    raised = failures("x")[:3]
    for index, failure in enumerate(raised):
        context.engine.failures = [failure]
        assert (await door.handle({"id": f"job-{index}", "input": {"prompt": PROMPT}}))["code"] == "internal_error"
    context.worker.usage_log.close()
    for place in (log.getvalue(), *files_below(tmp_path / "volume").values()):
        assert not [canary for canary in CANARIES if canary in place]
    found = [line for line in lines(log) if line["logger"] == "worker.service.jobs.store"]
    assert [line["request_id"] for line in found] == ["job-0", "job-1", "job-2"]


def test_a_json_line_has_what_a_program_looks_for(log):
    request_id.current.set("the-request")
    request_id.traceparent.set(f"00-{'a' * 32}-{'b' * 16}-01")
    with kept({"prompt": PROMPT}):
        try:
            raise ValueError(f"no: {PROMPT}")
        except ValueError:
            logging.getLogger("worker.x").exception("job %s failed", 5)
    request_id.traceparent.set(None)
    logging.getLogger("worker.x").info("two\nlines")
    first, second = lines(log)
    assert first.pop("time") <= second["time"]
    assert first.pop("exception").endswith("ValueError: no: [private]")
    assert first == {
        "level": "error",
        "logger": "worker.x",
        "request_id": "the-request",
        "trace_id": "a" * 32,
        "message": "job 5 failed",
    }
    assert second["message"] == "two\nlines"
    assert "trace_id" not in second


def test_no_word_of_a_callers_poses_as_a_line_of_its_own():
    log, formatter = io.StringIO(), TextFormatter("%(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler(log)
    handler.setFormatter(formatter)
    logger = logging.Logger("worker.x")
    logger.addHandler(handler)
    endings = ("\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029")
    for ending in endings:
        logger.info("job %s: completed", f"a{ending}INFO worker: a forged line")
    logger.info("job %s: completed", "\x1b[2K\x00\u202eb")
    try:
        raise ValueError("two\nERROR worker: lines")
    except ValueError:
        logger.exception("failed")
    at_margin = [line for line in log.getvalue().splitlines() if not line.startswith(" ")]
    assert at_margin == ["INFO worker.x: job a"] * len(endings) + [
        r"INFO worker.x: job \x1b[2K\x00\u202eb: completed",
        "ERROR worker.x: failed",
    ]
    assert "    | ValueError: two\n    | ERROR worker: lines" in log.getvalue()


def test_what_is_not_private_stays_readable():
    harmless = (
        "job 7 of stabilityai/stable-diffusion-xl-base-1.0 in /runpod-volume/models/blobs/"
        f"{'0123456789abcdef' * 4}: mat1 and mat2 shapes cannot be multiplied (77x768 and 1024x320)"
    )
    with kept({"prompt": PROMPT, "model": "stabilityai/stable-diffusion-xl-base-1.0", "image": "aGVsbG8="}):
        assert redact(harmless) == harmless
        assert redact(f"{harmless}: {PROMPT}") == f"{harmless}: [private]"
    assert redact(PROMPT) == PROMPT  # nobody's any more


def test_redaction_of_a_long_line_under_load_looks_for_little():
    prompts = [f"{index} {PROMPT * 20}" for index in range(64)]
    images = ["QUJD" * 1_000_000] * 128
    with kept({"prompts": prompts, "images": images}):
        assert "unlikely" not in redact(f"{'x ' * 2000}{prompts[5]}")
        looked_for = privacy._quotations.size
    assert looked_for < 500_000, "of half a billion"


@pytest.mark.parametrize(
    ("changes", "as_json"),
    [
        ({}, False),
        ({"runpod_webhook_get_job": "https://api.runpod.ai/x"}, True),
        ({"log_format": "json"}, True),
        ({"log_format": "text", "runpod_webhook_get_job": "https://api.runpod.ai/x"}, False),
    ],
)
def test_lines_are_for_programs_on_the_platform_and_for_people_elsewhere(changes, as_json):
    assert Settings(**changes).logs_json is as_json


def test_every_secret_of_the_settings_is_kept_out():
    secret = {name: f"value-of-{name}" for name, field in Settings.model_fields.items() if "Secret" in str(field)}
    assert {"hf_token", "civitai_token", "webhook_secret", "bucket_secret_access_key"} <= secret.keys()
    assert sorted(Settings(**secret).secrets) == sorted(secret.values())
