"""What the texts of an image say of its making, in the spellings that programs write."""

import pytest

from worker.wire.foreign.image_notes import origin_of

PLAIN = "a fox\nNegative prompt: bad\nSteps: 20, Seed: 1, Model hash: 6ce0161689, Model: v1"
FORGE = 'a fox, Steps of stone\nSteps: 8, Model hash: 6CE0161689, Lora hashes: "a: 1a2b3c4d5e6f, b: ffeeddccbbaa"'
HASHES = 'a fox\nSteps: 8, Hashes: {"model": "6ce0161689", "lora:a": "1a2b3c4d5e6f"}, Seed: 1234567890123'


@pytest.mark.parametrize(
    ("text", "prompt", "hashes"),
    [
        (PLAIN, "a fox", ("6ce0161689",)),
        (FORGE, "a fox, Steps of stone", ("6ce0161689", "1a2b3c4d5e6f", "ffeeddccbbaa")),
        (HASHES, "a fox", ("6ce0161689", "1a2b3c4d5e6f")),
        ("only words 6ce0161689", "only words 6ce0161689", ()),
        ("", "", ()),
    ],
)
def test_a1111s_text_is_read(text, prompt, hashes):
    origin = origin_of({"parameters": text})
    assert (origin.prompt, origin.hashes) == (prompt, hashes)


def test_this_workers_own_text_is_read():
    assert origin_of({"generation": '{"input": {"prompt": "a fox"}}'}).prompt == "a fox"
    for other in ("", "[]", '{"input": 3}', '{"input": {"prompt": 3}}'):
        assert origin_of({"generation": other}).prompt == ""
