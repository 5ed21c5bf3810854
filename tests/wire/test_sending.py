"""What is sent to another worker is plain JSON, and an image in it is written as it came."""

import json

import pytest

from worker.wire.sending import encode_body

IMAGE = "QUJD" * 20_000


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": None},
        {"input": {"prompt": "a", "image": IMAGE}, "policy": {"ttl": 5}},
        {"policy": {"ttl": 5}, "input": {"image": IMAGE, "prompt": 'ä"\\\n'}},
        {"input": {"prompt": "a", "image": IMAGE, "mask_image": IMAGE[4:]}},
        {"input": {"image": IMAGE}},
        {"input": {"prompt": "a", "image": f"data:image/png;base64,{IMAGE}", "images": [IMAGE]}},
        {"input": {"prompt": '"\n' * 40_000, "x": "\x00" * 60_000, "y": "ü" * 60_000}, "z": "}"},
    ],
)
def test_a_body_is_read_back_as_it_was(body):
    assert json.loads(encode_body(body)) == body


def test_what_json_does_not_have_is_left_out():
    assert json.loads(encode_body({"input": {"image": IMAGE, "x": float("nan")}})) == {
        "input": {"image": IMAGE, "x": None}
    }
    assert json.loads(encode_body({"input": {"image": IMAGE, "text": "\ud83d"}})) == {
        "input": {"image": IMAGE, "text": "?"}
    }
