"""Answers in parts: whatever an answer holds, each part fits its chunk and all of them are the whole answer."""

import json

import pytest

from tests.asking import an_answer
from tests.streams import documented_reader
from worker.core.result import AnswerFile
from worker.wire.parts import encode_chunks, encode_parts
from worker.wire.result import encode_answer

SMALL, LARGE = AnswerFile("png", b"x"), AnswerFile("png", bytes(30_000))


@pytest.mark.parametrize("prompt", ["x", '"' * 9_000, "\\" * 9_000, "ü\ud800\U0001f34e" * 3_000, "\n" * 9_000])
def test_every_part_fits_and_all_of_them_are_the_answer(prompt):
    answer = an_answer(LARGE, prompt=prompt)
    parts = encode_parts(answer, 12_000)
    assert max(len(json.dumps({"output": part})) for part in parts) <= 12_000
    assert [part["index"] for part in parts] == [*range(len(parts))]
    assert documented_reader()(parts) == json.loads(json.dumps(encode_answer(answer)))


def test_what_fits_into_one_chunk_stays_whole_unless_parts_were_asked_for():
    small, large = an_answer(SMALL), an_answer(LARGE)
    assert encode_chunks(small, 12_000) == [encode_answer(small)]
    assert len(encode_chunks(large, 12_000)) > 1
    assert [*encode_chunks(an_answer(SMALL, streamed=True), 12_000)[0]] == ["index", "total", "sha256", "data"]
