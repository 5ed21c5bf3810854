"""The benchmark for a GPU runs, goes on where it stopped, and says what failed: tiny, on a CPU."""

import json

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report
from benchmarks.gpu.measures import measures_of

MEASURES = {"plain", "floor", "lever taylorseer", "batches 64", "lora", "loras mixed", "loading", "layerwise fp8"}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    (model,) = [model for model in command.MODELS if model.name == "flux1-dev"]
    monkeypatch.setattr(command, "MODELS", (model,))
    return lambda *more: command.main(["--tiny", "--out", str(tmp_path), *more])


def figures(folder):
    return json.loads((folder / "figures.json").read_text())["models"]["flux1-dev"]


def test_it_measures_everything_goes_on_where_it_stopped_and_leaves_a_table_and_a_plot(
    bench, tmp_path, monkeypatch, capsys
):
    assert bench("--minutes", "0") == 0
    assert figures(tmp_path) == {}
    assert "Out of time" in capsys.readouterr().out
    broken = [("plain", lambda _: 1 / 0), ("floor", lambda _: {"step": 1.0, "call": 2.0})]
    with monkeypatch.context() as patched:
        patched.setattr(command, "measures_of", lambda _: broken)
        bench()
    assert figures(tmp_path)["plain"]["error"].startswith("ZeroDivisionError")
    ran = []

    def counted(one):
        for name, what in measures_of(one):
            yield name, (lambda bench, name=name, what=what: ran.append(name) or what(bench))

    monkeypatch.setattr(command, "measures_of", counted)
    bench()
    found = figures(tmp_path)
    assert found.keys() == MEASURES
    assert {*ran} == MEASURES - {"plain", "floor"}  # those two were measured before
    assert not [name for name, outcome in found.items() if "error" in outcome and name != "plain"]
    assert found["lever taylorseer"]["restored"] is True
    assert found["lora"]["layers"] > 0
    assert {"of_apart", "of_plain"} <= found["loras mixed"].keys()  # numbers of a busy machine may be 0
    assert {*found["batches 64"]["counts"]} == {"1", "2"}
    text = (tmp_path / "figures.md").read_text()
    assert all(f"| flux1-dev | {name.split(',')[0]}" in text for name in MEASURES)
    assert (tmp_path / "figures.svg").read_text().startswith("<svg ")


def test_a_floor_is_the_work_over_what_the_device_can_do():
    results = {"machine": {"matmul_flops": 1e12}, "models": {"m": {"floor": {"step": 1e12, "call": 4e12}}}}
    assert [*report.rows(results)] == [("m", "floor", 4.0, "1.00 TFLOP a step")]


def test_without_a_gpu_it_says_what_runs_all_the_same(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path)])
    assert "--tiny" in capsys.readouterr().err
