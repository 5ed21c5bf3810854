"""Bodies are plain JSON, whatever their texts hold and however often."""

import json

import pytest

from worker.transport.body import LONG, written
from worker.wire.result import Base64


@pytest.mark.parametrize("letters", ["QUJD", '"\\\n', "ä€😀", "\x00\x1f"])
def test_long_texts_in_many_places_are_read_back_as_they_were(letters):
    one, other = (letters * LONG)[:LONG], (letters * LONG)[1 : LONG + 1]
    body = {
        "image": one,
        "images": [one, other],
        "output": {"image": one, "n": 1, "deep": ({"x": other},)},
        "": letters,
    }
    assert json.loads(written(body)) == json.loads(json.dumps(body))


def test_base64_is_written_as_it_is():
    text = Base64("QUJD" * LONG)
    assert (
        written({"image": text, "images": [text]})
        == json.dumps({"image": text, "images": [text]}).replace(" ", "").encode()
    )


def test_a_long_text_is_written_where_it_stands_only():
    text = "A" * LONG
    assert written({"a": text, "b": [text]}) == b'{"a":"%s","b":["%s"]}' % (text.encode(), text.encode())


@pytest.mark.parametrize("length", [1, LONG])
def test_what_json_does_not_have_is_left_out(length):
    assert json.loads(written({"x": float("nan"), "text": "a" * length})) == {"x": None, "text": "a" * length}
    assert json.loads(written({"text": "\ud83d" * length})) == {"text": "?" * length}


def test_the_usual_numbers_and_words_are_as_they_were():
    body = {"a": None, "b": True, "c": 1.5, "d": [], "e": {}, "f": "ü"}
    assert json.loads(written(body)) == body
