"""Every flow of the page, in a real browser against a real worker with the demo model."""

import json
import subprocess

import pytest

from tests.page import desk
from tests.page.conftest import ADMIN, KEYS

LONG = {"num_inference_steps": 100, "num_images": 8}


@pytest.mark.parametrize("door", ["worker", "gateway"])
def test_type_generate_preview_and_have_the_image(door, visit, request):
    page = visit(request.getfixturevalue(door))
    desk.prompt(page, "a red apple")
    desk.number(page, "num_inference_steps", 60)
    page.evaluate(
        """() => { window.previews = []; new MutationObserver(() => {
        const shown = document.querySelector(".preview:not([hidden])");
        if (shown) window.previews.push(shown.src);
        }).observe(document.body, {subtree: true, attributes: true, childList: true}); }"""
    )
    desk.press(page)
    job = desk.done(page)
    previews = page.evaluate("window.previews")
    assert len(set(previews)) >= 2
    assert all(each.startswith("data:image/jpeg;base64,/9j/") for each in previews)
    sent = desk.request_of(page, job)
    assert (sent["prompt"], sent["num_inference_steps"]) == ("a red apple", 60)
    assert isinstance(sent["seed"], int)  # rolled by the page, so that it can be said again
    (result,) = desk.stored(page)
    assert (result["job"], result["seed"], result["type"]) == (job, sent["seed"], "image/png")
    assert page.locator(".job img").evaluate("image => image.naturalWidth") == 256


def test_the_price_stands_there_before_anything_is_sent(worker, visit):
    page = visit(worker)
    page.locator(".price .cost", has_text="GB of").wait_for()
    desk.generate(page, num_inference_steps=4)
    for each in (page, visit(worker)):  # by this browser's own images, and in another one by what the worker measured
        each.locator(".price .cost", has_text="about").wait_for()
        assert "$" in each.locator(".price .cost").inner_text()


@pytest.mark.parametrize("door", ["worker", "gateway"])
def test_a_job_is_cancelled(door, visit, request):
    page = visit(request.getfixturevalue(door))
    desk.prompt(page, "a red apple")
    desk.number(page, "num_inference_steps", 100)
    desk.number(page, "num_images", 8)
    desk.press(page)
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.locator(".job", has_text="The job was cancelled.").wait_for()
    assert desk.stored(page) == []


@pytest.mark.parametrize("door", ["worker", "gateway"])
def test_a_job_outlives_its_tab_and_is_there_on_another_device(door, visit, request):
    worker = request.getfixturevalue(door)
    page = visit(worker)
    desk.prompt(page, "a green frog")
    desk.number(page, "num_inference_steps", 100)
    desk.press(page)
    page.wait_for_url("**/ui#job/*")
    address = page.url
    page.locator(".job .state", has_text="step").wait_for()
    page.reload()
    phone = visit(worker, address.split("#")[1], viewport={"width": 390, "height": 800})
    assert desk.done(page) == desk.done(phone) == address.split("#job/")[1]
    assert page.locator("[data-field=prompt] textarea").input_value() == "a green frog"  # the form is there as well
    phone.goto(f"{worker}/ui#jobs")
    link = phone.locator(".joblist a", has_text="a green frog").first
    assert link.get_attribute("href") == f"#job/{address.split('#job/')[1]}"
    phone.goto(f"{worker}/ui#gallery")
    phone.locator(".gallery img").first.wait_for()


def test_a_mask_is_painted_with_the_keyboard_and_only_there_the_image_changes(worker, visit, tmp_path):
    page = visit(worker)
    desk.generate(page, num_inference_steps=4)
    page.locator(".job").get_by_role("button", name="Use as input").click()
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.locator("canvas.brush")
    canvas.focus()
    for key in ("Space", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 20, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    page.locator("[data-field=mask_image] img").wait_for()
    desk.press(page)
    page.locator(".job progress").wait_for()
    job = desk.done(page)
    request = desk.request_of(page, job)
    pixels = page.evaluate(
        """async source => { const image = new Image(); image.src = source; await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height); const paint = canvas.getContext("2d");
        paint.drawImage(image, 0, 0); const at = (x, y) => paint.getImageData(x, y, 1, 1).data[0];
        return [image.width, at(image.width / 2, image.height / 2), at(2, image.height - 3)]; }""",
        request["mask_image"],
    )
    assert pixels == [256, 255, 0]
    result = next(each for each in desk.stored(page) if each["job"] == job)
    assert (result["answer"]["task"], result["answer"]["mask"]) == ("inpainting", "white")


def test_a_saved_image_that_is_dropped_has_its_exact_request_back(worker, visit):
    page = visit(worker)
    job = desk.generate(page, "a green frog", num_inference_steps=7, guidance_scale=3.5, width=64, height=64)
    sent = desk.request_of(page, job)
    file = desk.saved(page)
    other = visit(worker)  # a browser that knows nothing of it
    other.locator("[data-field=prompt] textarea").wait_for()
    desk.drop(other, "main", file)
    desk.until(other, "document.querySelector('[data-field=prompt] textarea').value === 'a green frog'")
    desk.press(other)
    replayed = desk.request_of(other, desk.done(other))
    assert {name: replayed[name] for name in sent} == sent
    images = [each.locator(".job img").first.screenshot() for each in (page, other)]
    assert images[0] == images[1]
    desk.drop(other, "main", b"\x89PNG\r\n\x1a\n")
    other.locator(".note.bad", has_text="does not tell how it was made").wait_for()


def test_a_grid_tells_its_price_and_each_cell_has_its_own_values(worker, visit):
    page = visit(worker)
    desk.generate(page, num_inference_steps=4)
    desk.open_part(page, "Grid over")
    page.get_by_label("Values, with commas").first.fill("2")
    page.get_by_label("Down").select_option("num_inference_steps")
    page.get_by_label("Values, with commas").nth(1).fill("2, 4")
    page.locator(".cost", has_text="4 images: about").wait_for()
    page.get_by_role("button", name="Generate the grid").click()
    page.wait_for_url("**/ui#grid/*")
    page.reload()  # its jobs are on the worker, and its shape is in this browser
    desk.until(page, "document.querySelectorAll('.grid td img').length === 4")
    (grid,) = desk.stored(page, "grids")
    cells = [desk.request_of(page, job) for row in grid["jobs"] for job in row]
    first = cells[0]["seed"]
    assert [(cell["seed"] - first, cell["num_inference_steps"]) for cell in cells] == [(0, 2), (1, 2), (0, 4), (1, 4)]


def test_what_the_api_refuses_stands_beside_the_field_in_the_apis_words(worker, visit):
    page = visit(worker)
    desk.prompt(page, "a red apple")
    desk.number(page, "width", 100)
    desk.press(page)
    field = page.locator("[data-field=width]")
    field.locator(".problem").wait_for()
    assert "width" in field.locator(".problem").inner_text()
    assert field.locator("input").first.get_attribute("aria-invalid") == "true"
    desk.number(page, "width", 64)
    page.locator("[data-field=scheduler] select").evaluate(
        """select => { select.add(new Option("no sampler", '"no sampler"')); select.value = '"no sampler"';
        select.dispatchEvent(new Event("change")); }"""
    )
    desk.press(page)
    page.locator("[data-field=scheduler] .problem", has_text="scheduler").wait_for()
    assert field.locator(".problem").is_hidden()


def test_two_images_are_compared_in_what_they_differ(worker, visit):
    page = visit(worker)
    desk.generate(page, num_inference_steps=2, seed=7)
    page.locator(".job").get_by_role("button", name="Compare").click()
    desk.generate(page, num_inference_steps=3)
    page.locator(".job").get_by_role("button", name="Compare").click()
    page.wait_for_url("**/ui#compare/**")
    rows = page.locator("tbody tr").all_inner_texts()
    assert any(row.split("\t") == ["num_inference_steps", "2", "3"] for row in rows)
    assert not any(row.startswith(("prompt", "seed")) for row in rows)  # these are the same
    page.get_by_label("First to the left").press("Home")
    assert page.locator(".over").evaluate("node => node.style.getPropertyValue('--share')") == "0%"


def test_vary_and_upscale(worker, visit):
    page = visit(worker)
    first = desk.generate(page, num_inference_steps=4, width=64, height=64)
    page.locator(".job").get_by_role("button", name="Vary").click()
    desk.until(page, "job => location.hash.startsWith('#job/') && location.hash !== '#job/' + job", first)
    varied = desk.request_of(page, desk.done(page))
    assert varied["seed"] != desk.request_of(page, first)["seed"]
    assert (varied["strength"], varied["image"][:22]) == (0.6, "data:image/png;base64,")
    page.locator(".job").get_by_role("button", name="Upscale").click()
    desk.until(page, "document.querySelector('[data-field=model] select').value === 'demo-upscaler'")
    page.locator("[data-field=image] img").wait_for()
    desk.press(page)
    page.locator(".job progress").wait_for()
    desk.done(page)
    assert "upscaling" in [each["answer"]["task"] for each in desk.stored(page)]


def test_the_gallery_is_searched(worker, visit):
    page = visit(worker)
    desk.generate(page, "a red apple", num_inference_steps=2)
    desk.generate(page, "a green frog", num_inference_steps=2)
    page.goto(f"{worker}/ui#gallery")
    page.locator(".gallery img").nth(1).wait_for()
    page.get_by_label("Search").fill("frog")
    desk.until(page, "document.querySelectorAll('.gallery img').length >= 1")
    shown = page.locator(".gallery .tile").evaluate_all("tiles => tiles.map(tile => tile.ariaLabel)")
    assert shown
    assert all("frog" in each for each in shown)


def test_hostile_words_are_only_words(worker, visit):
    page = visit(worker)
    hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script>"\'><svg onload=alert(3)>'
    job = desk.generate(page, hostile, num_inference_steps=2)
    for address in ("gallery", "jobs", f"job/{job}", f"image/{job}.0", "admin/queue", f"compare/{job}.0/{job}.0"):
        page.goto(f"{worker}/ui#{address}")
        page.locator("main > *").first.wait_for()
    page.goto(f"{worker}/ui#jobs")
    assert page.locator(".joblist a", has_text="onerror").first.inner_text().startswith("<img src=x onerror=")
    assert page.locator("main script, main svg, main img[src='x']").count() == 0
    assert page.title().startswith("Jobs")
    page.goto(f'{worker}/ui#image/<img src=x onerror="document.title=4">')
    page.locator(".problem").wait_for()
    assert page.locator("main img").count() == 0


def test_the_curl_line_runs_as_it_was_copied(worker, visit, tmp_path):
    page = visit(worker)
    desk.prompt(page, "it's a frog")
    desk.number(page, "num_inference_steps", 2)
    page.get_by_role("button", name="Copy as…").first.click()
    texts = page.locator("dialog pre").all_inner_texts()
    line = next(text for text in texts if text.startswith("curl"))
    answer = json.loads(subprocess.run(["bash", "-c", line], capture_output=True, check=True, text=True).stdout)
    assert (answer["prompt"], answer["num_inference_steps"]) == ("it's a frog", 2)
    assert all(KEYS[0] not in text for text in texts)


def test_with_the_keyboard_alone(worker, visit):
    page = visit(worker)
    page.locator("[data-field=prompt] textarea").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('[data-field=prompt]') !== null"):
            break
    page.keyboard.type("a red apple")
    page.keyboard.press("Control+Enter")
    desk.done(page)


def give_key(page, key):
    page.get_by_label("Key of this worker").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_key_is_asked_for_once_and_stands_in_no_address(guarded, visit):
    page = visit(guarded)
    give_key(page, "a wrong key of twenty letters")
    page.locator("dialog .problem").wait_for()
    give_key(page, KEYS[0])
    job = desk.generate(page, num_inference_steps=2)
    page.reload()
    desk.done(page)  # the key is still there in this tab
    assert page.evaluate("[localStorage.length, sessionStorage.getItem('worker-key')]") == [0, KEYS[0]]
    assert not any("key" in address.split("?")[-1] or "anna" in address for address in page.watch.addresses)
    other = visit(guarded, f"job/{job}")
    give_key(other, KEYS[1])
    other.locator(".job .problem", has_text="No job of this caller").wait_for()
    other.goto(f"{guarded}/ui#jobs")
    other.locator(".joblist .empty").wait_for()


def test_another_key_keeps_what_is_typed(guarded, visit):
    page = visit(guarded)
    give_key(page, KEYS[0])
    field = page.locator("[data-field=prompt] textarea")
    field.wait_for()
    desk.prompt(page, "a red apple that")
    page.evaluate("document.querySelector('[data-field=prompt] textarea').typed = true")
    page.get_by_role("button", name="API key").click()
    with page.expect_response("**/models"):
        give_key(page, KEYS[1])
    field.press_sequentially(" somebody ate")
    desk.until(page, "document.querySelector('.price').textContent !== ''")
    assert page.evaluate("document.querySelector('[data-field=prompt] textarea').typed")  # it is the same field
    assert field.input_value() == "a red apple that somebody ate"


@pytest.mark.parametrize("tab", ["worker", "queue", "usage", "cache", "keys", "audit", "settings"])
def test_an_operators_page_is_for_admin_keys(guarded, visit, tab):
    page = visit(guarded, f"admin/{tab}")
    give_key(page, ADMIN)
    if tab == "worker":
        page.get_by_label("Model", exact=True).fill("demo")
        page.get_by_role("button", name="Load", exact=True).click()
        page.get_by_role("button", name="Unload demo", exact=True).click()
        desk.until(page, "!document.querySelector('[aria-label=\"Unload demo\"]')")
    elif tab == "queue":
        anna = visit(guarded)
        give_key(anna, KEYS[0])
        desk.prompt(anna, "a red apple")
        desk.number(anna, "num_inference_steps", 100)
        desk.number(anna, "num_images", 8)
        desk.press(anna)
        anna.wait_for_url("**/ui#job/*")
        job = anna.url.split("#job/")[1]
        page.get_by_role("button", name=f"Cancel {job}").click()
        anna.locator(".job", has_text="The job was cancelled.").wait_for()
        assert "a red apple" not in page.locator("main").inner_text()
    elif tab == "cache":
        page.get_by_label("Model", exact=True).fill("demo")
        page.get_by_role("button", name="Pull").click()
        page.locator(".note", has_text="It is on the volume.").wait_for()
        page.get_by_label("Model", exact=True).fill("no-such-model")
        page.get_by_role("button", name="Pull").click()
        page.locator(".note.bad", has_text="no-such-model").wait_for()
    elif tab == "keys":
        rows = page.locator("tbody tr")
        rows.nth(2).wait_for()
        assert sorted(row.split("\t")[1] for row in rows.all_inner_texts()) == ["", "", "yes"]
    elif tab == "audit":
        page.get_by_label("Search").fill("unauthenticated")
        page.locator("tbody tr", has_text="unauthenticated").first.wait_for()
    elif tab == "settings":
        page.locator("tbody tr", has_text="ADMIN_KEYS").wait_for()
        assert page.locator("tbody tr", has_text="ADMIN_KEYS").inner_text().split("\t") == ["ADMIN_KEYS", "set"]
        assert ADMIN not in page.locator("main").inner_text()
    else:
        page.get_by_label("By", exact=True).select_option("model")
        page.locator("table caption", has_text="By model").wait_for()
