"""Training on the page: the plan first, then its losses and samples, and what it is told between two steps."""

import os
import zipfile

import pytest

from tests.page.conftest import PROJECT, _served
from tests.page.test_looks import faults

STYLE = PROJECT / "docs/examples/train-style"


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A worker that trains."""
    yield from _served(tmp_path_factory.mktemp("training"), TRAINING="shared", GPU_PRICE_PER_HOUR="3.6")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "style.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(STYLE.iterdir()):
            file.write(each, each.name)
    return path


def fill(page, **values):
    for name, value in values.items():
        page.locator(f"#train-{name}").fill(str(value))


def test_a_training_is_planned_watched_sampled_saved_stopped_and_gone_on_with(training, archive, visit):
    page = visit(training, "train")
    page.locator("#train-zip").set_input_files(archive)
    fill(page, name="blueprint", trigger="blueprint", steps=5000, save_every=20, batch_size=2, learning_rate=0.003)
    fill(page, samples="a blueprint of a robot\na blueprint of a red apple")
    start = page.get_by_role("button", name="Start the training")
    assert start.is_disabled(), "the plan comes first"
    page.get_by_role("button", name="What it would take").click()
    page.get_by_text("24, 24 with a caption").wait_for()
    page.get_by_text("known once a job or a training of this model was timed here").wait_for()
    assert faults(page) == []
    start.click()
    page.get_by_text("so far").wait_for()
    assert "Step " in (state := page.get_by_role("status").first.inner_text()) and " left" in state and "$" in state
    page.get_by_role("img", name="Sample 2 at the base").wait_for()
    page.get_by_role("button", name="Save now").click()
    page.get_by_text("After this step.").wait_for()
    page.get_by_role("button", name="Sample now").click()
    page.get_by_role("img", name="Sample 2 at step").nth(1).wait_for()
    page.get_by_role("img", name="on average now").wait_for()
    if shots := os.environ.get("SHOTS"):
        page.screenshot(path=f"{shots}/training.png", full_page=True)
    assert faults(page) == []
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("send the same request again").wait_for()
    assert page.get_by_role("button", name="Stop").is_hidden()
    page.reload()
    page.get_by_role("img", name="Sample 1 at the base").wait_for()
    page.get_by_role("link", name="Train").click()
    page.get_by_role("link", name="blueprint").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_is_wrong_stands_beside_the_form_and_at_its_field(training, visit):
    page = visit(training, "train")
    fill(page, name="linked", links="https://127.0.0.1:1/1.png | a camel")
    page.get_by_role("button", name="What it would take").click()
    page.get_by_role("alert").get_by_text("data[0] cannot be had").wait_for()
    fill(page, model="nonesuch")
    page.get_by_role("button", name="What it would take").click()
    page.get_by_role("alert").get_by_text("nonesuch").wait_for()
    assert page.evaluate("document.activeElement.id") == "train-model"
