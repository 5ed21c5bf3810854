"""Which adapters a record names: those on the Hub and CivitAI, and nothing that a caller keeps to himself."""

import pytest

from worker.service.usage.telemetry import _public


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("org/style", "org/style"),
        ("org/style@abc#a.safetensors", "org/style@abc#a.safetensors"),
        ("civitai:12@34", "civitai:12@34"),
        ("file:/home/anna/secret project/lora.safetensors", None),
        ("https://example.com/anna.safetensors?token=abcdefgh", None),
        ("what is no reference", None),
    ],
)
def test_a_path_and_a_link_are_their_callers_affair(reference, named):
    assert _public(reference) == named
