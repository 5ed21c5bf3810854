"""Write the images of docs/page.md: `python -m tests.page.shots ADDRESS` of a worker with the demo model and Pillow."""

import io
import sys
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.page import desk
from tests.page.conftest import PATIENCE_MS, PROJECT, chromium

PROMPTS = ("a red apple", "a green frog", "a yellow banana", "a purple heart", "a cat", "a blue whale")


def write(page: Any, name: str) -> None:
    """Write what is seen, in as few colours as will do."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(PROJECT / "docs" / f"page-{name}.png", optimize=True)


def recipe(page: Any, worker: str) -> None:
    """Make a recipe of two jobs, with a fault in it."""
    page.goto(f"{worker}/ui#create")
    desk.generate(page, "a red apple", num_inference_steps=4, seed=9)
    page.locator(".job").get_by_role("button", name="Use as input").click()
    desk.generate(page, "a green apple", num_inference_steps=4, strength=0.6, seed=1009)
    page.locator(".job").get_by_role("button", name="Make a recipe").click()
    desk.until(page, "document.querySelector('#recipe-text')?.value.includes('step-2')")
    text = page.get_by_label("YAML").input_value()
    page.get_by_label("YAML").fill(text.replace("strength: 0.6", "strength: 6"))
    page.get_by_label("Name").fill("greener")
    page.get_by_role("button", name="Check").click()
    page.locator("#recipe-problem", has_text="Line").wait_for()
    page.set_viewport_size({"width": 1200, "height": 620})
    write(page, "recipe")


def main(worker: str) -> None:
    """Use the page as its readers would, and look at it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{worker}/ui")
        for prompt in PROMPTS[1:]:
            desk.generate(page, prompt)
        desk.generate(page, PROMPTS[0], seed=7)
        page.locator(".price .cost", has_text="about").wait_for()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        write(page, "light")
        page.emulate_media(color_scheme="dark")
        page.goto(f"{worker}/ui#gallery")
        page.locator(".gallery img").nth(5).wait_for()
        write(page, "dark")
        page.emulate_media(color_scheme="light")
        recipe(page, worker)
        page.set_viewport_size({"width": 390, "height": 780})
        page.goto(f"{worker}/ui#create")
        desk.open_part(page, "Images")
        desk.prompt(page, "a red apple")
        desk.number(page, "num_inference_steps", 100)
        desk.press(page)
        page.locator(".preview:not([hidden])").wait_for()
        page.locator(".job").evaluate("node => node.scrollIntoView()")
        page.locator(".job .state", has_text="left").wait_for()
        write(page, "phone")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
