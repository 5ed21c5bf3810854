"""What some options need: named where it is missing; and packages that are imported with care."""

import sys
from types import SimpleNamespace

import pytest

from worker.app.cli import train
from worker.app.cli.commands import parser_of
from worker.app.cli.terminal import Failure
from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.training import TrainingOptions, check_read
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


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"method": "full", "rank": 4}, "rank"),
        ({"method": "embedding", "trigger": "<x>", "targets": "all"}, "targets"),
        ({"method": "dora", "vectors": 2}, "vectors"),
        ({"like": "cat"}, "like"),
        ({"method": "lokr", "lora_plus": 16.0}, "lora_plus"),
        ({"optimizer": "prodigy", "lora_plus": 16.0}, "lora_plus"),
        ({"crops": 2}, "crops"),
        ({"mask": "off", "mask_floor": 0.5}, "mask_floor"),
        ({"class_images": 10}, "class_images"),
        ({"class_weight": 2.0}, "class_weight"),
        ({"samples": ("a cat",), "sample_captions": 1}, "sample_captions"),
        ({"method": "embedding"}, "trigger"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused_by_name(options, field):
    with pytest.raises(InvalidRequest, match=rf"^{field} .*(leave {field} out|send one, as <mascot>)\.$") as refused:
        check_read(TrainingOptions(**options))
    assert refused.value.field == field


def test_an_option_that_is_read_is_taken_and_so_is_one_that_nobody_said():
    for options in (
        {},
        {"rank": 4, "mask_floor": 0.5},
        {"crop": "random", "crops": 2},
        {"class_prompt": "a dog", "class_images": 5},
    ):
        check_read(TrainingOptions(**options))
    check_read(TrainingOptions(method="embedding", trigger="<x>", vectors=2, like="cat"))


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


@pytest.mark.parametrize(
    ("price", "typed", "minutes"),
    [(3.0, ("--max-usd", "1.5"), 30.0), (3.0, ("--max-usd", "1.5", "--minutes", "10"), 10.0), (None, (), None)],
)
def test_dollars_at_the_terminal_are_minutes_at_the_price_of_an_hour(monkeypatch, price, typed, minutes):
    monkeypatch.setattr(train, "settings_of", lambda terminal: SimpleNamespace(gpu_price_per_hour=price))
    arguments = parser_of("imgworker").parse_args(["train", "x", *typed])
    assert train._minutes(arguments, None) == minutes


def test_dollars_without_a_price_are_refused(monkeypatch):
    monkeypatch.setattr(train, "settings_of", lambda terminal: SimpleNamespace(gpu_price_per_hour=None))
    for amount, said in (("1", "set GPU_PRICE_PER_HOUR"), ("nan", "a number over 0"), ("0", "a number over 0")):
        with pytest.raises(Failure, match=said):
            train._minutes(parser_of("imgworker").parse_args(["train", "x", "--max-usd", amount]), None)
