"""The best checkpoint: which one it is, when to wait no longer, and its files, whole or not at all."""

from math import nan

import pytest

from worker.training import best
from worker.training.best import Measured


@pytest.mark.parametrize(
    ("losses", "expected", "is_over"),
    [
        ([], None, False),
        ([5.0], 10, False),
        ([5.0, 6.0], 10, False),
        ([5.0, 6.0, 5.0], 10, True),
        ([5.0, 6.0, 4.9], 30, False),
        ([nan, 6.0, nan, nan], 20, True),
    ],
)
def test_patience_counts_the_checkpoints_after_the_lowest_loss(losses, expected, is_over):
    measured = Measured([(10 * index, loss) for index, loss in enumerate(losses, 1)])
    assert measured.best == expected
    assert measured.is_over(2) is is_over


def test_what_a_cancel_measured_between_two_checkpoints_does_not_count():
    assert Measured.of([(10, 3.0), (13, 1.0), (20, 2.0), (25, 2.5)], 10, 25).losses == [(10, 3.0), (20, 2.0), (25, 2.5)]


def test_files_of_one_step_are_kept_and_taken_as_they_were(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "a-kohya.safetensors"]
    for step in (1, 2, 3):
        for file in files:
            file.write_text(f"{file.name} {step}")
        best.keep(tmp_path / "best", step, files)
    best.keep_only(tmp_path / "best", 2)
    assert [each.name for each in (tmp_path / "best").iterdir()] == ["step-000002"]
    assert not best.take(tmp_path / "best", 3, files)
    assert best.take(tmp_path / "best", 2, files)
    assert [file.read_text() for file in files] == ["a.safetensors 2", "a-kohya.safetensors 2"]
