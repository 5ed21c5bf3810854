"""The operator's versions on the page: one is made stable, gone back from, split and compared."""

import json
import os
import subprocess
import urllib.request

import pytest

from tests.page.conftest import ADMIN, KEYS, PROJECT, _served
from tests.page.desk import until
from tests.page.test_flows import give_key


def make_versions(folder):
    """Make two versions of the demo model on a volume: as it is, and with four steps more."""
    python = os.environ.get("WORKER_PYTHON") or str(PROJECT / ".venv/bin/python")
    environment = {**os.environ, "VOLUME_DIR": str(folder / "volume"), "DEVICE": "cpu", "PYTHONPATH": str(PROJECT)}
    for more, alias in (({}, "stable"), ({"DEFAULT_STEPS": "20"}, "candidate")):
        command = [python, "-m", "worker", "versions", "promote", "demo", "entry", "--as", alias]
        subprocess.run(command, env=environment | more, cwd=folder, check=True)


@pytest.fixture(scope="module")
def versioned(tmp_path_factory):
    """A worker whose demo model has two versions."""
    folder = tmp_path_factory.mktemp("versioned")
    make_versions(folder)
    yield from _served(folder, API_KEYS=",".join(KEYS), ADMIN_KEYS=ADMIN)


def stable(address):
    """The version that is served, as the API says it."""
    asked = urllib.request.Request(f"{address}/admin/versions?model=demo", headers={"Authorization": f"Bearer {ADMIN}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        (model,) = json.load(answer)["models"]
    return next(each["version"] for each in model["versions"] if "stable" in each["aliases"])


def test_a_version_is_served_gone_back_from_split_and_compared(versioned, visit):
    page = visit(versioned, "admin/versions")
    give_key(page, ADMIN)
    page.get_by_label("Model", exact=True).fill("demo")
    page.get_by_role("button", name="Make demo v2 stable").click()
    page.locator(".note", has_text="demo is served by v2.").wait_for()
    assert stable(versioned) == "v2"
    page.get_by_label("Why", exact=True).fill("hands have six fingers")
    page.get_by_role("button", name="Roll demo back to v1").click()
    page.locator(".note", has_text="demo is served by v1 again.").wait_for()
    assert stable(versioned) == "v1"
    history = page.get_by_role("table", name="History")
    history.get_by_text("@stable: v2 → v1").wait_for()
    history.get_by_text("hands have six fingers").wait_for()
    page.get_by_label("Share of the candidate, %").fill("25")
    page.get_by_role("button", name="Split", exact=True).click()
    page.get_by_text("demo is split: stable 75, candidate 25").wait_for()
    page.get_by_role("button", name="End the split of demo").click()
    page.get_by_text("demo is split").wait_for(state="detached")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("table", name="Jobs since").wait_for()
    page.get_by_label("Model", exact=True).fill("no-such-model")
    page.get_by_role("button", name="Serve the entry of models.yaml").click()
    page.locator(".note.bad", has_text="is not in models.yaml").first.wait_for()


def test_golden_prompts_stand_side_by_side(versioned, visit):
    page = visit(versioned, "admin/versions")
    give_key(page, ADMIN)
    page.get_by_label("Model", exact=True).fill("demo")
    page.get_by_role("button", name="Golden prompts by the candidate").click()
    table = page.get_by_role("table", name="demo@v1 on the left, demo@candidate on the right")
    table.get_by_role("img").nth(3).wait_for()
    both = "[...document.querySelectorAll('td img')].every(each => each.naturalWidth === 2 * each.naturalHeight + 8)"
    until(page, f"() => {both}")
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=f"{folder}/golden.png")
    page.get_by_role("button", name="Golden prompts by the newest").click()
    page.locator(".note.bad", has_text="nothing is newer than what demo is served as").wait_for()
