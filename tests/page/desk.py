"""What a person does on the page, in words: type, press, wait, look."""

import base64
import time
from typing import Any

from tests.page.conftest import PATIENCE_S

IMAGE = ".job .frame img:not(.preview)"


def prompt(page: Any, text: str) -> None:
    """Type a prompt."""
    page.locator("[data-field=prompt] textarea").fill(text)


def number(page: Any, field: str, value: object) -> None:
    """Type a value into a field."""
    page.locator(f"[data-field={field}] input").first.fill(str(value))


def press(page: Any) -> None:
    """Press Generate."""
    page.get_by_role("button", name="Generate", exact=True).click()


def generate(page: Any, text: str = "a red apple", **fields: object) -> str:
    """Generate an image, and return its job's id."""
    prompt(page, text)
    for name, value in fields.items():
        number(page, name, value)
    press(page)
    return done(page)


def done(page: Any) -> str:
    """Wait for the image of the job at hand, and return the job's id."""
    page.locator(".job .state", has_text="Done.").wait_for()
    page.locator(".job img").first.wait_for()
    return str(page.url.split("#job/")[1])


def until(page: Any, expression: str, argument: object = None) -> None:
    """Wait until an expression is true. Playwright's own way runs texts in the page, which its policy forbids."""
    ends = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression, argument):
        assert time.monotonic() < ends, expression
        time.sleep(0.05)


def open_part(page: Any, name: str) -> None:
    """Open a folded part of the page."""
    part = page.locator("details", has=page.locator("summary", has_text=name)).first
    if part.get_attribute("open") is None:
        part.locator("summary").first.click()


def stored(page: Any, store: str = "results") -> list[Any]:
    """Return what the browser keeps, without its files."""
    found: list[Any] = page.evaluate(
        """store => new Promise(resolve => { indexedDB.open("worker-page").onsuccess = event => {
        event.target.result.transaction(store).objectStore(store).getAll().onsuccess = got =>
        resolve(got.target.result.map(({blob, ...rest}) => rest)); }; })""",
        store,
    )
    return found


def request_of(page: Any, job: str) -> Any:
    """Return the request that this browser sent for a job."""
    return next(each["input"] for each in stored(page, "requests") if each["job"] == job)


def drop(page: Any, selector: str, data: bytes, name: str = "image.png") -> None:
    """Drop a file onto an element, as a mouse does."""
    page.evaluate(
        """([selector, text, name]) => {
        const bytes = Uint8Array.from(atob(text), each => each.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, {type: "image/png"}));
        for (const kind of ["dragover", "drop"])
          document.querySelector(selector).dispatchEvent(
            new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [selector, base64.b64encode(data).decode(), name],
    )


def saved(page: Any) -> bytes:
    """Save the image at hand, and return the file's bytes."""
    with page.expect_download() as download:
        page.locator(".job").get_by_role("button", name="Save").first.click()
    return bytes(download.value.path().read_bytes())
