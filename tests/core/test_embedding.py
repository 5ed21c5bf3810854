"""What a textual inversion's header says: its parts, and its word."""

import pytest

from worker.core.embedding import embedding_parts, own_token

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


@pytest.mark.parametrize(
    ("key", "metadata", "word"),
    [
        ("<cat>", {"name": "other"}, "<cat>"),
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
