"""What a person sees and hears: no serious fault of accessibility; light, dark, at a phone's width; a quick start."""

from pathlib import Path

import pytest

from tests.page import desk

LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}
TABS = ("queue", "models", "versions", "cache", "usage", "audit", "settings")
PAGES = ("create", "jobs", "gallery", "recipes", "discover", "admin/worker", *(f"admin/{tab}" for tab in TABS))


def faults(page):
    """Return what axe finds serious or critical on the page as it stands."""
    import axe_playwright_python

    script = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
    page.evaluate(script)  # by the browser's own tools, which no policy holds
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_serious_fault_and_nothing_hangs_over(worker, visit, look):
    page = visit(worker, **LOOKS[look])
    job = desk.generate(page, "a red apple", num_inference_steps=2)
    for part in page.locator("summary").all():
        if part.is_visible():
            part.click()
    for address in (f"job/{job}", *PAGES, f"image/{job}.0", f"compare/{job}.0/{job}.0"):
        page.goto(f"{worker}/ui#{address}")
        page.locator("main > *").first.wait_for()
        desk.until(page, "!document.querySelector('main').textContent.includes('Loading…')")
        assert faults(page) == [], address
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], address
    page.goto(f"{worker}/ui#create")
    page.get_by_role("button", name="API key").click()
    page.locator("dialog").wait_for()
    assert faults(page) == []


def test_it_paints_before_it_has_asked_for_anything(worker, visit):
    page = visit(worker)
    page.locator("[data-field=prompt]").wait_for()
    times = page.evaluate(
        """() => ({paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
        asked: Math.min(...performance.getEntriesByType("resource").filter(each => each.initiatorType === "fetch")
          .map(each => each.responseEnd)), bytes: performance.getEntriesByType("resource")
          .filter(each => each.name.includes("/ui/")).reduce((sum, each) => sum + each.encodedBodySize, 0)})"""
    )
    print(f"first paint after {times['paint']:.0f} ms, {times['bytes']} bytes of the page")
    assert times["paint"] < times["asked"]
    assert times["bytes"] <= 150_000
