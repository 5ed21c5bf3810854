"""What some options need: named where it is missing; and packages that are imported with care."""

import sys

import pytest

from worker.core.errors import UnsupportedModel
from worker.core.training import TrainingOptions
from worker.engine.packages import bitsandbytes_package
from worker.training import demands
from worker.training.demands import check_demands


@pytest.mark.parametrize(("optimizer", "package"), [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes")])
def test_an_optimizer_whose_package_is_missing_is_refused_by_name_with_the_fix(monkeypatch, optimizer, package):
    asked = []
    monkeypatch.setattr(demands, "find_spec", asked.append)
    with pytest.raises(UnsupportedModel, match=f"{optimizer} needs the Python package {package}.*extra train.*adamw"):
        check_demands(TrainingOptions(optimizer=optimizer))
    assert asked == [package]
    check_demands(TrainingOptions(optimizer="lion"))


def test_files_for_tensorboard_are_refused_without_their_package_and_it_says_where_the_losses_are(monkeypatch):
    monkeypatch.setattr(demands, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModel, match=r"tensorboardX.*progress\.jsonl"):
        check_demands(TrainingOptions(tensorboard=True))


def test_prodigy_begins_at_its_own_rate_where_none_is_said():
    assert TrainingOptions(optimizer="prodigy").learning_rate == 1
    assert TrainingOptions(optimizer="prodigy", learning_rate=0.5).learning_rate == 0.5
    assert TrainingOptions().learning_rate == 1e-4


@pytest.mark.parametrize("known", [None, object()])
def test_bitsandbytes_is_imported_where_it_finds_no_kernels_that_it_would_fetch(monkeypatch, tmp_path, known):
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    import kernels\nexcept ImportError:\n    fetched = False\nelse:\n    fetched = True\n"
    )
    (tmp_path / "kernels.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bitsandbytes", "kernels"):
        monkeypatch.setitem(sys.modules, name, known)  # so that the end of the test takes away what comes there
        del sys.modules[name]
    if known is not None:
        sys.modules["kernels"] = known
    assert bitsandbytes_package().fetched is False
    assert sys.modules.get("kernels") is known
