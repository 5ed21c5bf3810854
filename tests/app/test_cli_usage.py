"""`python -m worker usage`: what was drawn, added up and as an image."""

import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from tests.app.commands import invoke, said
from worker.service.usage.bars import draw_bars


def today():
    """Asked by each test: a run may go on beyond midnight."""
    return datetime.now(UTC).date()


def line(day=None, **fields):
    shown = {
        "at": f"{day or today()}T12:00:00.000+00:00",
        "action": "generate",
        "outcome": "ok",
        "model": "tiny",
        "caller": None,
    }
    return shown | {"images": 1, "gpu_seconds": 2.0, "pixel_steps": 3_000_000, "bytes_downloaded": 0} | fields


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command over these lines, all of them files of two workers."""
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path))

    def usage(lines, *arguments):
        folder = tmp_path / "usage"
        folder.mkdir(exist_ok=True)
        for number, item in enumerate(lines):
            with (folder / f"{item['at'][:10]}-pod-{number % 2}.jsonl").open("a") as file:
                file.write(json.dumps(item) + "\n")
        return invoke("usage", *arguments)

    return usage


def rows(result):
    return [re.split(r"  +", line) for line in said(result).splitlines()[1:]]


def some():
    return [
        line(cost_usd=0.5),
        line(model="other", images=2, gpu_seconds=1_234.5, caller="alice", bytes_downloaded=2_500_000_000),
        {**line(outcome="gpu_oom"), "images": 0, "gpu_seconds": 0},
        line(today() - timedelta(days=1), cost_usd=0.25),
        line(today() - timedelta(days=40)),
        line(action="models"),
    ]


def test_a_long_name_is_whole_on_a_narrow_screen(run, monkeypatch):
    name = "an-organisation/a-model-of-its-own-with-a-name-as-long-as-this"
    monkeypatch.setenv("COLUMNS", "40")
    assert [row[0] for row in rows(run([line(model=name)], "--by", "model"))] == [name]


def test_days_models_and_callers_are_added_up(run):
    yesterday = str(today() - timedelta(days=1))
    assert rows(run(some())) == [
        [yesterday, "1", "0", "1", "2.00", "3.00", "0.00", "0.2500"],
        [str(today()), "3", "1", "3", "1,236.50", "9.00", "2.50", "0.5000"],
    ]
    assert [row[0] for row in rows(run([], "--by", "model"))] == ["other", "tiny"]
    assert rows(run([], "--by", "caller", "--days", 1)) == [
        ["-", "2", "1", "1", "2.00", "6.00", "0.00", "0.5000"],
        ["alice", "1", "0", "2", "1,234.50", "3.00", "2.50", "-"],
    ]
    assert len(rows(run([], "--days", 60))) == 3
    assert [entry["jobs"] for entry in json.loads(said(run([], "--json")))] == [1, 3]


def test_what_cannot_be_read_is_left_out_and_nothing_is_no_failure(run, tmp_path):
    assert rows(run([])) == []
    (tmp_path / "usage" / f"{today()}-torn.jsonl").write_bytes(
        b'{"action": "gene\n\xff\n[]\n' + json.dumps(line()).encode()
    )
    (tmp_path / "usage" / "notes.jsonl").write_text("mine")
    assert [row[1] for row in rows(run([]))] == ["1"]


def test_the_plot_has_a_bar_for_each(run, tmp_path):
    result = run(some(), "--by", "model", "--plot", tmp_path / "usage.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "usage.png") as image:
        assert image.format == "PNG"


def test_bars_are_as_long_as_their_numbers_are_large():
    with Image.open(io.BytesIO(draw_bars("A title", {"a": 100.0, "half of a": 50.0, "none": 0.0}, "s"))) as image:
        blue = image.convert("RGB").tobytes()
        width = image.width
    pixels = [blue[at : at + 3] for at in range(0, len(blue), 3)]
    lengths = [pixels[row : row + width].count(bytes((46, 110, 180))) for row in range(0, len(pixels), width)]
    drawn = sorted({length for length in lengths if length > 50})
    assert len(drawn) == 2
    assert drawn[1] == pytest.approx(2 * drawn[0], abs=2)
    assert draw_bars("Nothing", {}, "s")
