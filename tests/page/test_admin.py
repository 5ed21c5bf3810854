"""The operator's page: what lies on the volume, what waits, where alerts stand, and why a model is refused."""

import pytest

from tests.page import desk
from tests.page.conftest import ADMIN, KEYS, _served, sites
from tests.page.test_flows import give_key
from tests.page.test_looks import faults

RULES = """rules:
  disk: {measure: disk_free_gb, below: 1000000000, to: []}
  waits: {measure: queue_s, above: 3000, to: []}
"""


@pytest.fixture(scope="module")
def operated(tmp_path_factory):
    """A worker with a small Hub to fetch from, and two rules of which one fires."""
    folder = tmp_path_factory.mktemp("operated")
    (folder / "alerts.yaml").write_text(RULES)
    settings = {"ALERTS": str(folder / "alerts.yaml"), "API_KEYS": KEYS[0], "ADMIN_KEYS": ADMIN}
    with sites() as endpoints:
        settings |= {"ALLOW_UNREGISTERED_MODELS": "true", "ALLOW_PRIVATE_URLS": "true"}
        yield from _served(folder, **settings, **endpoints)


@pytest.fixture
def admin(operated, visit):
    """Open a tab with the operator's key."""

    def open_tab(tab):
        page = visit(operated, f"admin/{tab}")
        give_key(page, ADMIN)
        return page

    return open_tab


def test_a_model_is_pulled_pinned_and_removed(admin):
    page = admin("cache")
    page.get_by_label("Model", exact=True).fill("org/small")
    page.get_by_role("button", name="Pull").click()
    row = page.locator("tbody tr", has_text="org/small")
    row.get_by_role("button", name="Pin").click()
    row.get_by_role("button", name="Unpin").wait_for()
    page.reload()
    row.get_by_role("button", name="Unpin").click()
    row.get_by_role("button", name="Pin", exact=False).wait_for()
    assert faults(page) == []
    page.once("dialog", lambda asked: asked.dismiss())
    row.get_by_role("button", name="Remove").click()
    page.once("dialog", lambda asked: asked.accept())
    row.get_by_role("button", name="Remove").click()
    page.get_by_text("Nothing was downloaded.").wait_for()


def test_what_waits_is_cancelled_at_once(operated, admin, visit):
    page, drawing = admin("queue"), visit(operated)
    give_key(drawing, ADMIN)
    for text in ("a red apple", "a blue apple", "a green apple"):
        desk.prompt(drawing, text)
        desk.number(drawing, "num_inference_steps", 100)
        desk.number(drawing, "num_images", 8)
        desk.press(drawing)
        drawing.wait_for_url("**/ui#job/*")
        drawing.goto(f"{operated}/ui#create")
    desk.until(page, "document.querySelectorAll('[aria-label^=Cancel]').length === 3")
    page.once("dialog", lambda asked: asked.dismiss())
    page.get_by_role("button", name="Cancel all that wait").click()
    assert page.get_by_role("button", name="Cancel ").count() == 4
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Cancel all that wait").click()
    page.locator(".note", has_text="2 jobs were cancelled.").wait_for()
    page.get_by_role("button", name="Cancel ").nth(1).click()  # the one that is drawn
    desk.until(page, "document.querySelectorAll('[aria-label^=Cancel]').length === 0")


def test_alerts_say_where_each_rule_stands(admin):
    page = admin("alerts")
    disk, waits = (page.locator("tbody tr", has_text=name) for name in ("disk_free_gb", "queue_s"))
    disk.get_by_text("firing").wait_for()
    assert "below 1000000000" in disk.inner_text().replace("1e+9", "1000000000")
    assert "firing" not in waits.inner_text()
    assert faults(page) == []


@pytest.mark.parametrize(
    ("model", "question", "said"),
    [
        ("org/anime-odd", "Plan", "MyOwnPipeline"),
        ("org/nothing-here", "Inspect", "org/nothing-here"),
        ("no-such-model", "Plan", "is not in models.yaml"),
        ("file:/etc/passwd", "Inspect", "ALLOWED_MODEL_DIRS"),
    ],
)
def test_it_says_why_a_model_is_refused(admin, model, question, said):
    page = admin("models")
    page.get_by_label("Model", exact=True).fill(model)
    page.get_by_role("button", name=question, exact=True).click()
    problem = page.get_by_role("alert").filter(has_text=said)
    problem.wait_for()
    assert faults(page) == []
