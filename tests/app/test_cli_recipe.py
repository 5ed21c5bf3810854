"""Recipes at the terminal: one is checked, shown and run without being served."""

import json

import pytest
from PIL import Image

from tests.app.commands import failed, invoke, said
from tests.service.recipes.by_hand import SHIPPED


@pytest.fixture(autouse=True)
def volume(monkeypatch, tmp_path):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("DEVICE", "cpu")


def test_the_shipped_ones_are_right_and_a_wrong_one_is_refused_with_its_line(tmp_path):
    assert said(invoke("recipe", "check", SHIPPED / "poster.yaml")).strip() == (
        "recipes/poster.yaml: right; 2 steps, of demo, demo-upscaler"
    )
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        (SHIPPED / "poster.yaml").read_text().replace("num_inference_steps: 8", "num_inference_steps: 800")
    )
    line = failed(invoke("recipe", "check", wrong))
    assert line.startswith(f"error: {tmp_path.name}/wrong.yaml:9: steps.base: num_inference_steps must be")
    assert "There is no file" in failed(invoke("recipe", "check", tmp_path / "none.yaml"))


def test_it_is_shown_with_its_inputs_and_steps():
    text = said(invoke("recipe", "show", SHIPPED / "poster.yaml"))
    assert "poster (text-to-image): A thing in a colour" in text
    assert "red, green, yellow, blue; else red" in text
    schema = json.loads(said(invoke("recipe", "show", SHIPPED / "poster.yaml", "--json")))
    assert schema["properties"]["colour"]["enum"] == ["red", "green", "yellow", "blue", None]


@pytest.mark.slow
def test_it_is_run_with_files_for_images(tmp_path):
    drawn, grey = tmp_path / "drawn.png", tmp_path / "grey.jpg"
    said(invoke("recipe", "run", SHIPPED / "poster.yaml", "thing=star", "seed=3", "-o", drawn))
    answer = json.loads(said(invoke("recipe", "run", SHIPPED / "greyed.yaml", f"image={drawn}", "-o", grey, "--json")))
    assert answer["image"] == str(grey)
    with Image.open(grey) as image:
        assert image.size == (256, 256)
    assert "image is required" in failed(invoke("recipe", "run", SHIPPED / "greyed.yaml"))
