"""Recorded requests to every door get the answers that were recorded, byte for byte but for what masks.py names."""

import difflib
from pathlib import Path

import pytest

from tests.contract.recorded.conversation import FOLDER, play, read, written

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_conversation_goes_as_before(path: Path, tmp_path: Path) -> None:
    recorded = read(path)
    today = written(play(recorded, tmp_path))
    if today != written(recorded):
        diff = difflib.unified_diff(
            written(recorded).split("\n"), today.split("\n"), "recorded", "today", lineterm="", n=6
        )
        changed = "\n".join([*diff][:200])
        pytest.fail(
            f"answers of {path.name} have changed; if that is meant, `python -m tests.contract.recorded {path.stem}` "
            f"records them again:\n{changed}",
            pytrace=False,
        )
