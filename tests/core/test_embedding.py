"""What a textual inversion's header says: its parts, and its word."""

import pytest

from worker.core.embedding import Rows, embedding_parts, embedding_tensors, own_token, own_words

WIDE = (4, 768)


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ({"emb_params": WIDE}, {"*": "emb_params"}),
        ({"string_to_param.*": WIDE, "string_to_token.*": ()}, {"*": "string_to_param.*"}),
        ({"<cat>": (768,)}, {"*": "<cat>"}),
        ({"clip_l": WIDE, "clip_g": (4, 1280)}, {"clip_l": "clip_l", "clip_g": "clip_g"}),
        ({"clip_l": WIDE, "t5xxl": (4, 4096)}, {"clip_l": "clip_l", "t5": "t5xxl"}),
        ({"anything": WIDE}, {"*": "anything"}),
        ({"<a>": (768,), "<b>": (768,)}, {}),  # two words in one file: whose?
        ({"clip_l": WIDE, "weight": WIDE}, {}),
        ({"emb_params": (4, 4, 3, 3)}, {}),
        ({}, {}),
    ],
)
def test_parts(shapes, parts):
    assert embedding_parts(shapes) == parts


PIVOTAL = {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)}


@pytest.mark.parametrize(
    ("shapes", "words", "tensors"),
    [
        (
            {"<a>": (768,), "<b>": WIDE},
            {"<a>": {"*": Rows("<a>")}, "<b>": {"*": Rows("<b>")}},
            [("*", "<a>"), ("*", "<b>")],
        ),
        (
            PIVOTAL,
            {
                f"<s{row}>": {"clip_l": Rows("text_encoders_0", row), "clip_g": Rows("text_encoders_1", row)}
                for row in (0, 1)
            },
            [("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1")],
        ),
        (
            {"text_encoders_0": (1, 768)},
            {"<s0>": {"clip_l": Rows("text_encoders_0", 0)}},
            [("clip_l", "text_encoders_0")],
        ),
        (PIVOTAL | {"text_encoders_1": (3, 1280)}, {}, [("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1")]),
        ({"clip_l": WIDE}, {}, [("clip_l", "clip_l")]),
        ({"<a>": WIDE, "weight": WIDE}, {}, []),
    ],
)
def test_a_file_may_name_several_words(shapes, words, tensors):
    assert own_words(shapes) == words
    assert embedding_tensors(shapes) == tensors


@pytest.mark.parametrize(
    ("key", "metadata", "word"),
    [
        ("<cat>", {"name": "other"}, "<cat>"),
        ("midjourney-style", {}, "midjourney-style"),
        ("string_to_param.jinx", {"name": "other"}, "jinx"),
        ("string_to_param.*", {"name": " other "}, "other"),
        ("emb_params", {"ss_output_name": "trained"}, "trained"),
        ("emb_params", {"name": " "}, "my.file"),
    ],
)
def test_the_word_is_the_files_own_before_its_name(key, metadata, word):
    assert own_token({"*": key}, metadata, "my.file.safetensors") == word


def test_a_pair_is_called_as_its_file():
    assert own_token({"clip_l": "clip_l", "clip_g": "clip_g"}, {}, "jinx.safetensors") == "jinx"
