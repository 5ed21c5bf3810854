"""models.yaml takes an entry's place only once it was read back: other models stay, and a mistake changes nothing."""

import stat

import pytest

from worker.app.models_file import ModelsFileError, _write

DIFFERENT = "another model would have become a different one"
BEFORE = "models:\n  a: {source: org/a}\n  b: {source: org/b}  # stays\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BEFORE.replace("org/b", "org/other") + "  c: {source: org/c}\n", DIFFERENT),
        (
            BEFORE.replace("  b: {source: org/b}  # stays\n", "  c: {source: org/c}\n"),
            DIFFERENT,
        ),
        (BEFORE + "  a b: {source: org/c}\n", r"models\.yaml:4: .*cannot be a model id"),
        ("models: [", "models.yaml"),
    ],
)
def test_a_text_that_is_wrong_or_changes_others_is_not_written(tmp_path, text, words):
    path = tmp_path / "models.yaml"
    path.write_text(BEFORE)
    with pytest.raises(ModelsFileError, match=words):
        _write(path, text)
    assert path.read_text() == BEFORE
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_behind_a_link_is_replaced_in_its_place_with_its_rights(tmp_path):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real/models.yaml", tmp_path / "models.yaml"
    path.write_text(BEFORE)
    path.chmod(0o640)
    link.symlink_to(path)
    _write(link, BEFORE + "  c: {source: org/c}\n")
    assert link.is_symlink()
    assert path.read_text().endswith("org/c}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
