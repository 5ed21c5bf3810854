"""What a gateway reads of a worker's answers, and what it sends: the same facts on both sides, and nothing else."""

import json
from dataclasses import replace

import pytest

from tests.asking import an_answer
from tests.fakes.engine import TRACED, make_context
from worker.core.errors import EngineFailure, OutOfMemory
from worker.core.precision import Weights
from worker.core.result import AnswerFile, JobFacts, LoraReport, Timings, Usage
from worker.wire.receiving import Unreadable, decode_failure, decode_progress, decode_result
from worker.wire.result import encode_answer
from worker.wire.sending import encode_request, request_key

LORA = LoraReport("style", 0.8, 12, 14, "ab", "lora", ("odd",), ("wizard",))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["data", "url", "path"])
def test_an_answer_comes_back_as_it_was(kind, count):
    contents = [f"file {index}" for index in range(count)]
    made = {"data": lambda text: AnswerFile("webp", text.encode())}.get(
        kind, lambda text: AnswerFile("webp", **{kind: text})
    )
    files = tuple(map(made, contents))
    facts = {"loras": (LORA,), "timings": Timings(1.0, 0.0, 2.0, 3.0, 2), "usage": Usage(4.0, count, 9, 1.5, 7, 0.25)}
    facts |= {"profile": replace(TRACED, trace=b"", **{kind: "x"}) if kind != "data" else TRACED}
    facts |= {"weights": Weights("8bit", "gguf", "model") if count == 1 else Weights("bf16")}
    answer = an_answer(*files, seeds=tuple(range(5, 5 + count)), **facts)
    result = decode_result(json.loads(json.dumps(encode_answer(answer))))
    assert tuple(file for item in result.artifacts for file in item.files) == files
    assert [item.seed for item in result.artifacts] == [*answer.seeds]
    for name in JobFacts.__dataclass_fields__:
        if name != "placement":
            assert getattr(result, name) == getattr(answer, name), name


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": []},
        {"format": "bmp"},
        {"width": "64"},
        {"image": None},
        {"image": "%%%"},
        {"task": "cooking"},
        {"parameters": None},
        {"usage": {"gpu_seconds": "much"}},
        {"profile": {"operators": [1]}},
    ],
    ids=json.dumps,
)
def test_an_answer_of_another_form_is_unreadable_and_nothing_else_is_raised(change):
    body = encode_answer(an_answer(AnswerFile("png", b"png"))) | change
    with pytest.raises(Unreadable):
        decode_result(body)
    for other in (None, "text", [], {}):
        with pytest.raises(Unreadable):
            decode_result(other)


def test_a_failure_is_of_its_kind_whatever_else_stands_in_it():
    error = decode_failure({"error": "Too small.", "code": "gpu_oom", "field": 3, "details": {"gb": 12}})
    assert (type(error), error.message, error.field, error.details) == (OutOfMemory, "Too small.", None, {"gb": 12})
    assert type(decode_failure(["?"])) is EngineFailure
    assert decode_failure({"code": "of another version"}).message == "The job failed."


def test_progress_that_is_none_is_dropped():
    told = {"phase": "inference", "step": 1, "total": 4}
    assert decode_progress(told).step == 1
    assert decode_progress(told | {"preview": "%%%"}).preview is None  # the job goes on
    for other in (None, {}, {"phase": "cooking", "step": 1, "total": 4}, {"phase": "load", "step": "1", "total": 4}):
        assert decode_progress(other) is None


async def test_a_job_is_always_sent_the_same_with_its_seed_and_under_its_own_key(tmp_path):
    context = make_context(tmp_path)
    job, other = [await context.accept(width=64, height=64, timeout_s=9) for _ in range(2)]
    sent = encode_request(job)
    assert (
        sent
        == encode_request(job)
        == {
            "prompt": "an apple",
            "width": 64,
            "height": 64,
            "model": "tiny",
            "seed": job.seeds[0],
        }
    )
    assert request_key(job) == request_key(job) != request_key(other)
