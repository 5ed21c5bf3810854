"""Marks of other programs in a prompt: tags are taken out, and what is not read is named."""

import pytest

from worker.core.prompt_syntax import Tag, take_tags, unread_marks


@pytest.mark.parametrize(
    ("prompt", "rest", "tags"),
    [
        ("a cat <lora:add_detail:0.8>", "a cat", [("lora", "add_detail", ("0.8",))]),
        ("<lora:a:1>,a cat", ",a cat", [("lora", "a", ("1",))]),
        ("a <LoRA:b v2.1> cat", "a cat", [("lora", "b v2.1", ())]),
        ("a <lyco:c:0.5:0.7> cat<lora:sub/d:-1>", "a cat", [("lora", "c", ("0.5", "0.7")), ("lora", "sub/d", ("-1",))]),
        ("<hypernet:e:1> a", "a", [("hypernet", "e", ("1",))]),
        ("<lora:f:0.8:lbw=MIDD>", "", [("lora", "f", ("0.8", "lbw=MIDD"))]),
        ("a <b> cat, 1 < 2, <lora:>, <lora>", "a <b> cat, 1 < 2, <lora:>, <lora>", []),
    ],
)
def test_tags_are_taken_out_of_the_words(prompt, rest, tags):
    words, taken = take_tags(prompt)
    assert words == rest
    assert [(tag.kind, tag.name, tag.settings) for tag in taken] == tags
    assert all(isinstance(tag, Tag) and tag.text in prompt for tag in taken)


@pytest.mark.parametrize(
    ("prompt", "marks"),
    [
        ("a cat AND a dog :1.2", ["AND"]),
        ("a cat\nAND\na dog", ["AND"]),
        ("a [cat:dog:0.5] b", ["[from:to:when]"]),
        ("a [cat:10]", ["[from:to:when]"]),
        ("a [big [cat]:dog:0.5]", ["[from:to:when]"]),
        ("a [cat::0.5]", ["[from:to:when]"]),
        ("a [cat|dog]", ["[a|b]"]),
        ("a {cat|red dog}", ["{a|b}"]),
        ("a __colour__ cat", ["__wildcard__"]),
        ("__animals/big-cats__", ["__wildcard__"]),
        ("a cat, embedding:easynegative", ["embedding:name"]),
        ("a __c__ {x|y} AND z", ["AND", "{a|b}", "__wildcard__"]),
        ("a <lora:x:1> cat", ["<lora:name:weight>"]),
    ],
)
def test_what_is_not_read_is_named(prompt, marks):
    assert [name for name, _ in unread_marks(prompt)] == marks


@pytest.mark.parametrize(
    "prompt",
    [
        "", "a cat and a dog", "AND so on", "BRAND NEW", "(cat:1.3) [dog] ((x))", r"a \[cat|dog\]", r"\[a:b:0.5\]",
        "a | b",
        '{"subject": "a|b", "mood": [1, 2]}', "12:30 [sic]", "snake_case __init", "____", "a_b__c", "ratio 3:4",
    ],
)  # fmt: skip
def test_plain_words_are_no_marks(prompt):
    assert unread_marks(prompt) == ()
