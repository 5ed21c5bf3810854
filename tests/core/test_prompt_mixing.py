"""Prompts that change from step to step and prompts composed by AND, as text."""

import pytest

from worker.core.prompt_mixing import is_mixed, mixture_at


def texts(prompt: str, steps: int = 4) -> list[str]:
    """The prompt at each of so many steps."""
    found = [mixture_at(prompt, step, steps) for step in range(1, steps + 1)]
    assert all(len(mixture) == 1 and mixture[0][1] == 1.0 for mixture in found)
    return [mixture[0][0] for mixture in found]


@pytest.mark.parametrize(
    ("prompt", "each"),
    [
        ("a [cat:dog:0.5]", ["a cat", "a cat", "a dog", "a dog"]),
        ("a [cat:dog:1]", ["a cat", "a dog", "a dog", "a dog"]),
        ("a [cat:dog:9]", ["a cat"] * 4),
        ("a [cat: dog:.25] b", ["a cat b", "a  dog b", "a  dog b", "a  dog b"]),
        ("a [big:0.75] cat", ["a  cat", "a  cat", "a  cat", "a big cat"]),
        ("a [big::2] cat", ["a big cat", "a big cat", "a  cat", "a  cat"]),
        ("a [cat|dog]", ["a cat", "a dog", "a cat", "a dog"]),
        ("[a|b|c]", ["a", "b", "c", "a"]),
        ("[a|[b:c:3]]", ["a", "b", "a", "c"]),
        ("[(a:1.3):[b]:2]", ["(a:1.3)", "(a:1.3)", "[b]", "[b]"]),
        ("[x [a|b] y]", ["[x a y]", "[x b y]", "[x a y]", "[x b y]"]),
    ],
)
def test_a_prompt_changes_at_its_steps(prompt, each):
    assert texts(prompt) == each
    assert is_mixed(prompt)


@pytest.mark.parametrize(
    ("prompt", "mixture"),
    [
        ("a cat AND a dog", (("a cat", 1.0), ("a dog", 1.0))),
        ("a cat :1.2 AND a dog:0.5 AND (x:1.3)", (("a cat", 1.2), ("a dog", 0.5), ("(x:1.3)", 1.0))),
        ("a cat AND mist :-0.5", (("a cat", 1.0), ("mist", -0.5))),
        ("a [cat:dog:1]\nAND b", (("a dog", 1.0), ("b", 1.0))),
    ],
)
def test_and_composes_prompts_with_weights(prompt, mixture):
    assert mixture_at(prompt, 2, 4) == mixture
    assert is_mixed(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a cat and a dog",
        "BRAND",
        "AND so on",
        "[cat]",
        "[[a]] (b:1.2)",
        r"\[a|b\]",
        "[a:b]",
        "[a",
        "a]b|c",
        "12:30",
    ],
)
def test_other_prompts_stay_to_the_letter(prompt):
    assert texts(prompt) == [prompt] * 4
    assert not is_mixed(prompt)


def test_brackets_without_end_cost_no_time():
    assert texts("[" * 4_000 + "a|b" + "]" * 4_000, 2)[0].count("[") >= 3_000
