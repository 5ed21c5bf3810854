"""Discovery on the page: a search, what was found, what cannot be had, and a refusal beside its field."""

import os
import shutil

import pytest

from tests.page.conftest import ADMIN, PROJECT, _served, sites
from tests.page.test_flows import give_key
from tests.page.test_looks import faults


@pytest.fixture(scope="module")
def discovering(tmp_path_factory):
    """A worker that asks both sites in miniature, with a models.yaml of its own."""
    folder = tmp_path_factory.mktemp("discovering")
    shutil.copytree(PROJECT / "models", folder / "models")
    shutil.copy(PROJECT / "models.yaml", folder)
    with sites() as endpoints:
        models = str(folder / "models.yaml")
        yield from _served(folder, ALLOW_PRIVATE_URLS="true", MODELS_YAML=models, ADMIN_KEYS=ADMIN, **endpoints)


def test_a_search_shows_what_runs_and_names_what_cannot_be_had(discovering, visit):
    page = visit(discovering, "discover")
    page.get_by_label("Look for").fill("anime")
    page.get_by_role("button", name="Search").click()
    page.locator(".finds li", has_text="anime-xl").wait_for()
    page.get_by_text("not to be had or run here").click()
    page.get_by_text("org/anime-gated is gated: accept its licence").wait_for()
    page.get_by_text("is in early access until 2027-01-31").wait_for()
    page.get_by_label("Kind").select_option("lora")
    page.get_by_label("Family").fill("sd1")
    page.get_by_role("button", name="Search").click()
    found = page.locator(".finds li", has_text="Anime Lines 1.5")
    found.get_by_text("Words: lines15").wait_for()
    found.get_by_text("Goes with demo", exact=True).wait_for()
    page.get_by_label("Family").fill("nonesuch")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("alert").get_by_text("'nonesuch' is no family known here").wait_for()
    assert page.evaluate("document.activeElement.id") == "discover-base"


def test_axe_finds_nothing_serious_in_what_was_found(discovering, visit):
    page = visit(discovering, "discover")
    page.get_by_label("Look for").fill("anime")
    page.get_by_role("button", name="Search").click()
    page.locator(".finds li").first.wait_for()
    page.get_by_text("not to be had or run here").click()
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_find_is_added_to_models_yaml_by_one_button_and_then_used(discovering, visit):
    page = visit(discovering, "discover")
    page.get_by_label("Look for").fill("anime")
    page.get_by_role("button", name="Search").click()
    find = page.locator(".finds li", has_text="anime-xl")
    page.once("dialog", lambda asked: asked.accept("not a name"))
    find.get_by_role("button", name="to models.yaml").click()
    page.locator(".note.bad", has_text="admin keys").wait_for()
    page.get_by_role("button", name="API key").click()
    give_key(page, ADMIN)
    page.get_by_label("Look for").fill("anime")  # the page begins anew for whoever has this key
    page.get_by_role("button", name="Search").click()
    page.once("dialog", lambda asked: asked.accept("not a name"))
    find.get_by_role("button", name="to models.yaml").click()
    page.locator(".note.bad", has_text="cannot be a model id").wait_for()
    page.once("dialog", lambda asked: asked.accept(asked.default_value))
    find.get_by_role("button", name="to models.yaml").click()
    find.get_by_text("in models.yaml, and served.").wait_for()
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=f"{folder}/added.png")
    page.get_by_role("button", name="Search").click()
    find.get_by_role("button", name="Use ").wait_for()
