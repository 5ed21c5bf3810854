"""An entry more or less in models.yaml: the other lines stay as they are."""

import pytest

from worker.catalog.registry import load_registry
from worker.catalog.registry_edit import EditError, entry_block, taken_out, with_entry
from worker.store.refs import parse_reference

FILE = """# ours
defaults: {dtype: bfloat16}

models:
    first:            # keep me
        source: org/first
        description: >
            Two lines
            of text.
        # about nothing
    second: {source: org/second}   # and me

# the tiers come last
tiers:
  L40S: {vram_gb: 48}
"""
BLOCK = entry_block("found", {"source": "civitai:1@2", "description": 'A "name": # it'}, "licence: free\nmodels:")


@pytest.mark.parametrize(
    "text",
    [
        FILE,
        FILE.replace("\n", "\r\n"),
        FILE.replace("    second: {source: org/second}   # and me\n", ""),
        "models:\n  only: {source: org/only}",
        "models:\n- none\n",
    ],
)
def test_an_entry_stands_behind_the_others_and_nothing_else_changes(tmp_path, text):
    if "- none" in text:
        text = "models:\n# of which there are none yet\n"
    edited = with_entry(text, "found", BLOCK)
    before, after = text.splitlines(), edited.splitlines()
    assert [line for line in after if line not in before] == [
        f"{' ' * (4 if 'first' in text else 2)}{line}" for line in BLOCK.splitlines()
    ]
    assert [line for line in before if line in after] == before
    assert ("\r\n" in edited) == ("\r\n" in text)
    path = tmp_path / "models.yaml"
    path.write_bytes(edited.encode())
    models = load_registry(path, parse_source=parse_reference).models
    assert list(models)[-1] == "found"
    assert models["found"].source.reference == "civitai:1@2"
    assert models["found"].description == 'A "name": # it'
    rest, block = taken_out(edited.replace("\r\n", "\n"), "found")
    assert rest.splitlines() == before
    assert block == BLOCK


def test_a_new_file_and_one_without_models_get_them():
    assert with_entry("", "found", "found: {}") == "models:\n  found: {}\n"
    assert with_entry("tiers: {}\n", "found", "found: {}") == "tiers: {}\n\nmodels:\n  found: {}\n"
    assert with_entry("models: {}\n", "found", "found: {}").split() == ["models:", "found:", "{}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"models": {"one": {}}}', "braces"),
        ("models: {one: {}}", "braces"),
        ("models:\n  found: {}\n", "already"),
        ("- a\n", "mapping"),
        ("models: [\n", "valid YAML"),
    ],
)
def test_a_file_that_cannot_be_edited_is_said_to_be_so(text, said):
    with pytest.raises(EditError, match=said):
        with_entry(text, "found", BLOCK)
    with pytest.raises(EditError):
        taken_out(text, "absent")
