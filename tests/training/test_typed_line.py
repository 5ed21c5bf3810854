"""What is typed to train, before anything learns."""

from pathlib import Path

import pytest

from tests.app.commands import invoke, said

STYLE = Path(__file__).parents[2] / "docs/examples/train-style"


@pytest.fixture(autouse=True)
def volume(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.chdir(tmp_path)


def test_data_is_typed_behind_the_command_or_by_its_name():
    by_name = said(invoke("train", "--data", STYLE, "--steps", "300", "--check"))
    assert by_name == said(invoke("train", STYLE, "--steps", "300", "--check"))
    assert "images: 24" in by_name


@pytest.mark.parametrize(
    ("data", "words"),
    [((), "one of the arguments DATA --data is required"), ((STYLE, "--data", STYLE), "--data: not allowed with")],
)
def test_data_that_is_missing_or_typed_twice_is_one_sentence(data, words):
    result = invoke("train", *data, "--check")
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
