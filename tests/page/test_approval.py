"""The approval gallery of image_client: a batch of the mock provider, decided on in a browser, key by key."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.conftest import PROJECT
from tests.page.test_looks import faults

PYTHON = os.environ.get("WORKER_PYTHON") or str(PROJECT / ".venv/bin/python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A batch of four images."""
    lines = [json.dumps({"prompt": f"a {what}", "seed": 7}) for what in ("red apple", "green pear", "blue plum", "cat")]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    _command(tmp_path, "batch", "list.jsonl", "--yes").check_returncode()
    return tmp_path / "results"


@pytest.fixture
def reviewing(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`review --gallery`, and the address that it printed."""
    process = subprocess.Popen(
        [PYTHON, "-m", "image_client.cli", "review", "results", "--gallery"],
        cwd=folder.parent,
        env=_environment(folder.parent),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, re.search(r"http://\S+", process.stderr.readline())[0]
    finally:
        process.kill()
        process.communicate()


def test_a_batch_is_decided_on_with_the_keyboard(reviewing, folder: Path, visit):
    process, address = reviewing
    page = visit(address.split("/?")[0], hash="")
    page.goto(address)
    page.locator("article").nth(3).wait_for()
    assert page.evaluate("document.activeElement.dataset.index") == "0" and "secret" not in page.url
    assert faults(page) == []
    page.keyboard.press("a")
    _counts(page, "3 undecided, 1 approved, 0 rejected")
    page.keyboard.press("r")
    assert "why the image is rejected" in page.get_by_role("alert").inner_text()
    page.locator("#reason").fill("too green")
    page.locator("article").first.focus()
    page.keyboard.press("r")
    _counts(page, "2 undecided, 1 approved, 1 rejected")
    page.keyboard.press("u")
    _counts(page, "3 undecided, 1 approved, 0 rejected")
    page.keyboard.press("r")
    _counts(page, "2 undecided, 1 approved, 1 rejected")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").locator("img").wait_for()
    page.keyboard.press("Escape")
    page.locator("#filter").select_option("all")
    page.locator("#sort").select_option("sharpness")
    assert page.locator("article").count() == 4
    if shots := os.environ.get("SHOTS"):
        page.screenshot(path=f"{shots}/approval.png")
    page.get_by_role("button", name="Done").click()
    page.get_by_text("this page can be closed").wait_for()
    assert process.wait(240) == 0
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["approved", "rejected", "scored", "scored"]
    assert lines[1]["reason"] == "too green"


def _counts(page, text: str) -> None:
    page.locator("#counts", has_text=text).wait_for()


def _environment(folder: Path) -> dict[str, str]:
    own = {"IMAGE_CLIENT_LEDGER": str(folder / "spending.sqlite"), "PYTHONPATH": str(PROJECT), "BROWSER": "true"}
    return {**os.environ, **own}


def _command(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([PYTHON, "-m", "image_client.cli", *words], cwd=folder, env=_environment(folder), check=False)
