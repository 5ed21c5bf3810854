"""Licences: a warning for those that forbid trade, and for those that nobody told."""

import pytest

from worker.catalog.licences import warning_of


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("apache-2.0", None),
        ("openrail++", None),
        ("creativeml-openrail-m", None),
        ("flux-1-dev-non-commercial-license", "forbids commercial use"),
        ("fair-noncommercial-research-license", "forbids commercial use"),
        ("sai-nc-community", "forbids commercial use"),
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("commercial use: none", "forbids commercial use"),
        ("commercial use: Image, Sell", None),
        ("commercial use: Image; no derivatives", "allows no derivatives"),
        ("cc-by-nd-4.0", "allows no derivatives"),
        ("other", "one of its own"),
        (None, "not known here"),
    ],
)
def test_whoever_trains_is_warned_of_what_binds_the_result(licence, words):
    warning = warning_of("org/model", licence)
    assert (words is None) == (warning is None)
    assert words is None or (words in warning and "org/model" in warning)
