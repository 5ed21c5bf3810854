"""Recipes on the page: a chain of jobs becomes one, its fault stands beside its line, and what is right is served."""

import io

import pytest
from PIL import Image

from tests.page import desk
from tests.page.conftest import ADMIN, KEYS, _served
from tests.page.test_looks import faults


@pytest.fixture(scope="module")
def cooking(tmp_path_factory):
    """A worker that keeps recipes in a folder of its own."""
    folder = tmp_path_factory.mktemp("cooking")
    (folder / "recipes").mkdir()
    yield from _served(folder, API_KEYS=",".join(KEYS), ADMIN_KEYS=ADMIN, RECIPES=str(folder / "recipes"))


def pixels(data):
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def opened(visit, address, name, key=ADMIN, **options):
    """Open the page of somebody who gave their key before."""
    page = visit(address, "jobs", **options)
    page.evaluate("key => sessionStorage.setItem('worker-key', key)", key)
    page.goto(f"{address}/ui#{name}")
    page.reload()
    return page


def recipe(page):
    return page.get_by_label("YAML")


def test_a_chain_of_jobs_becomes_a_recipe_that_gives_the_same_image(cooking, visit):
    page = opened(visit, cooking, "create")
    desk.generate(page, "a red apple", num_inference_steps=4, seed=9)
    page.locator(".job").get_by_role("button", name="Use as input").click()
    desk.generate(page, "a green apple", num_inference_steps=4, strength=0.6, seed=1009)
    by_hand = pixels(desk.saved(page))
    page.locator(".job").get_by_role("button", name="Make a recipe").click()
    recipe(page).wait_for()
    desk.until(page, "document.querySelector('#recipe-text').value.includes('step-2')")
    text = recipe(page).input_value()
    assert 'image: "${steps.step-1.image}"' in text
    assert 'default: "a red apple"' in text
    assert "data:" not in text

    page.get_by_label("Name").fill("greener")
    recipe(page).fill(text.replace("strength: 0.6", "strength: 6"))
    page.get_by_role("button", name="Check").click()
    line = next(at for at, each in enumerate(text.splitlines(), 1) if "strength" in each)
    problem = page.locator("#recipe-problem", has_text=f"Line {line}: steps.step-2: strength must be")
    problem.wait_for()
    number = page.locator(".code li").nth(line - 1)
    assert "problem" in number.get_attribute("class")
    assert abs(number.bounding_box()["y"] - problem.bounding_box()["y"]) < 8
    assert faults(page) == []

    recipe(page).fill(text)
    page.get_by_role("button", name="Check").click()
    page.locator(".note", has_text="Right, of demo").wait_for()
    page.get_by_role("button", name="Save").click()
    page.locator(".note", has_text="Saved and served.").wait_for()
    page.get_by_role("button", name="Edit greener").wait_for()
    page.goto(f"{cooking}/ui#create")
    page.get_by_label("Model", exact=True).select_option("greener")
    desk.until(page, "document.querySelector('[data-field=prompt-2]') !== null")
    desk.generate(page, "a red apple", seed=9)
    assert pixels(desk.saved(page)) == by_hand


def test_it_is_written_by_hand_opened_again_and_refused_without_an_admin_key(cooking, visit):
    page = opened(visit, cooking, "recipes", KEYS[0])
    page.get_by_label("Name").fill("plain")
    recipe(page).fill("inputs:\n  prompt: {type: text}\nsteps:\n  base: {model: demo, prompt: '${inputs.prompt}'}\n")
    page.get_by_role("button", name="Save").click()
    page.locator("#recipe-problem", has_text="admin keys only").wait_for()
    page.get_by_role("button", name="API key").click()
    page.get_by_label("Key of this worker").fill(ADMIN)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("button", name="Save").click()
    page.locator(".note", has_text="Saved and served.").wait_for()
    recipe(page).fill("steps: {")
    page.get_by_role("button", name="Check").click()
    page.locator("#recipe-problem", has_text="Line 1: is not valid YAML").wait_for()
    page.get_by_role("button", name="Edit plain").click()
    desk.until(page, "document.querySelector('#recipe-text').value.includes('base: {model: demo')")


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 740}}, {"color_scheme": "dark"}])
def test_it_is_fit_for_a_phone_and_the_dark(cooking, visit, options):
    page = opened(visit, cooking, "recipes", **options)
    recipe(page).fill(
        "steps:\n  base: {model: demo, prompt: a long line that goes on beyond the right border of a phone}\n"
    )
    page.get_by_label("Name").fill("nothing")
    page.get_by_role("button", name="Check").click()
    page.locator(".note", has_text="Right").wait_for()
    recipe(page).fill(
        "steps:\n  base: {model: none, prompt: a long line that goes on beyond the right border of a phone}\n"
    )
    page.get_by_role("button", name="Check").click()
    page.locator("#recipe-problem", has_text="Line 2").wait_for()
    assert faults(page) == []
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
