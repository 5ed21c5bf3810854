"""Weights in prompts: what each spelling means, by hand."""

import pytest

from worker.core.prompt import holds_weights, parse_prompt


def said(prompt):
    """Sections of (text, weight) pairs."""
    return [[(piece.text, round(piece.weight, 6)) for piece in section] for section in parse_prompt(prompt)]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("a ((red)) apple", [("a ", 1), ("red", 1.21), (" apple", 1)]),
        ("a [red] apple", [("a ", 1), ("red", 0.909091), (" apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("a (red: .5 ) apple", [("a ", 1), ("red", 0.5), (" apple", 1)]),
        ("(a (red:1.5) apple)", [("a ", 1.1), ("red", 1.65), (" apple", 1.1)]),
        ("(red:-1)", [("red", -1)]),
        ("(red:0)", [("red", 0)]),
        (r"a \(red\) apple", [("a (red) apple", 1)]),
        (r"a \[red\] \\ b", [("a [red] \\ b", 1)]),
        (r"(red \(dark\):1.2)", [("red (dark)", 1.2)]),
        ("a) b]", [("a) b]", 1)]),
        ("a :1.3) b", [("a :1.3) b", 1)]),
        ("a (red apple", [("a ", 1), ("red apple", 1.1)]),
        ("[[red", [("red", 0.826446)]),
        ("at 12:30 (noon)", [("at 12:30 ", 1), ("noon", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("()", []),
        ("", []),
        ("(good)(bad:0.5)", [("good", 1.1), ("bad", 0.5)]),
        ("(red:99999999)", [("red:99999999", 1.1)]),
    ],
)
def test_what_is_written_weighs_what_it_means(prompt, pieces):
    assert said(prompt) == [pieces]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a\nBREAK\nb BREAK c", [[("a", 1)], [("b", 1)], [("c", 1)]]),
        ("(a BREAK b:1.2) c", [[("a", 1.2)], [("b", 1.2), (" c", 1)]]),
        ("BREAK a BREAK", [[("a", 1)]]),
        ("a breakfast BREAKER break", [[("a breakfast BREAKER break", 1)]]),
        ("BREAK", [[]]),
    ],
)
def test_break_begins_a_new_section(prompt, sections):
    assert said(prompt) == sections


@pytest.mark.parametrize(
    ("prompt", "any_", "explicit"),
    [
        ("a red apple", False, False),
        ("a red apple (on a table)", True, False),
        ("a (red:1.3) apple", True, True),
        ("a BREAK b", True, True),
        (r"a \(red\) apple", True, False),
        ("a ratio of 2:1) and", False, False),
        ("", False, False),
    ],
)
def test_a_prompt_is_told_to_hold_weights(prompt, any_, explicit):
    assert holds_weights(prompt) is any_
    assert holds_weights(prompt, explicit=True) is explicit


def test_a_long_row_of_brackets_is_read_in_no_time():
    assert parse_prompt("(" * 8_000)[0] == ()
    assert len(parse_prompt("([" * 2_000 + "x")[0]) == 1
