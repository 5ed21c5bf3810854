"""More of the page: additions to a request, other files than PNG, a fleet's plan, hostile answers, a lost line."""

import json
import struct
import urllib.request
import zlib

import pytest

from tests.page import desk

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def test_a_size_is_chosen_and_turned(worker, visit):
    page = visit(worker)
    page.get_by_role("button", name="16:9").click()
    sides = [page.locator(f"[data-field={name}] input").first for name in ("width", "height")]
    wide = [int(side.input_value()) for side in sides]
    assert wide[0] > wide[1]
    assert all(side % 8 == 0 for side in wide)
    page.get_by_role("button", name="Turn").click()
    assert [int(side.input_value()) for side in sides] == wide[::-1]
    assert page.get_by_role("button", name="9:16").get_attribute("aria-pressed") == "true"


def test_a_lora_has_a_row_with_a_slider_and_the_apis_word_beside_it(worker, visit):
    page = visit(worker)
    desk.prompt(page, "a red apple")
    desk.open_part(page, "LoRAs and other additions")
    page.get_by_role("button", name="Add LoRA").click()
    row = page.locator("[data-field=loras] li")
    row.get_by_label("Model", exact=True).fill("no-such-lora")
    slider = row.locator("[data-field=weight] input[type=range]")
    slider.evaluate("node => { node.value = 0.5; node.dispatchEvent(new Event('input', {bubbles: true})); }")
    assert row.locator("[data-field=weight] input[type=number]").input_value() == "0.5"
    desk.press(page)
    page.locator("[data-field=loras] > .problem", has_text="no-such-lora").wait_for()
    sent = desk.request_of(page, page.url.split("#job/")[1])
    assert sent["loras"] == [{"model": "no-such-lora", "weight": 0.5}]
    row.get_by_role("button", name="Remove").click()
    desk.number(page, "num_inference_steps", 2)
    desk.press(page)
    assert "loras" not in desk.request_of(page, desk.done(page))


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_other_files_of_ours_tell_their_request_too(worker, visit, kind):
    page = visit(worker)
    desk.open_part(page, "More settings")
    page.get_by_role("button", name="Set Output").click()
    page.locator("[data-field=format] select").select_option(f'"{kind}"')
    desk.generate(page, "a green frog", num_inference_steps=3, seed=11)
    file = desk.saved(page)
    assert file.startswith({"webp": b"RIFF", "jpeg": b"\xff\xd8"}[kind])
    desk.prompt(page, "something else")
    desk.drop(page, "main", file, f"image.{kind}")
    page.locator(".note", has_text="own request").wait_for()
    assert page.locator("[data-field=prompt] textarea").input_value() == "a green frog"
    assert page.locator("[data-field=seed] input").first.input_value() == "11"


def test_a_job_is_followed_over_a_lost_connection(worker, visit):
    page = visit(worker)
    desk.prompt(page, "a green frog")
    desk.number(page, "num_inference_steps", 100)
    desk.press(page)
    page.locator(".job .state", has_text="step").wait_for()
    page.context.set_offline(True)
    page.goto(f"{worker}/ui#jobs")  # asks every second, and is not answered
    page.locator(".note.bad", has_text="does not answer").first.wait_for()
    page.context.set_offline(False)
    page.locator(".joblist a", has_text="a green frog").first.click()
    desk.done(page)


def test_a_fleet_says_where_it_would_be_generated(worker, visit):
    """The tiers of a gateway's plan; the gateway itself is played by the browser."""
    page = visit(worker, "jobs")
    tier = {"vram_gb": 24.0, "fits": True, "chosen": True, "offload": None, "model_is": "resident", "moved_gb": 0.0}
    plan = {"model": "demo", "fits": True, "weight_gb": 0.01, "tasks": []}
    plan["tiers"] = [{"tier": HOSTILE, "expected_s": 4.2, "expected_usd": 0.0021, "reason": "It is there.", **tier}]
    page.route("**/plan", lambda route: route.fulfill(json=plan))
    page.goto(f"{worker}/ui#create")
    page.locator(".price .cost", has_text="about 4.2 s · $0.00210").wait_for()
    desk.open_part(page, "Fleet")
    assert page.locator(".price tbody th").inner_text() == f"{HOSTILE} (chosen)"


def test_a_gateway_s_page_says_where_an_image_would_be_generated_and_for_how_much(gateway, visit):
    page = visit(gateway)
    page.locator(".price .cost", has_text="about").wait_for()
    desk.open_part(page, "Fleet")
    page.locator(".price tbody th", has_text="L40S (chosen)").wait_for()
    desk.generate(page, num_inference_steps=2)


def test_a_gateway_s_operator_sees_the_fleet_loads_and_looks_after_a_worker_s_models(gateway, visit):
    page = visit(gateway, "admin/worker")
    page.locator("table", has=page.locator("caption", has_text="Fleet")).locator("tbody th", has_text="box").wait_for()
    page.get_by_label("Model", exact=True).fill("demo")
    page.get_by_role("button", name="Load", exact=True).click()
    page.locator(".note", has_text="It is on the device.").wait_for()
    page.get_by_role("button", name="Unload demo", exact=True).click()
    page.locator(".note", has_text="demo is off the device.").wait_for()
    page.goto(f"{gateway}/ui#admin/cache")
    assert page.get_by_label("Worker", exact=True).input_value() == "box"
    page.get_by_label("Model", exact=True).fill("no-such-model")
    page.get_by_role("button", name="Pull").click()
    page.locator(".note.bad", has_text="no-such-model").wait_for()  # the worker's own words


def test_whatever_a_worker_answers_is_only_text(worker, visit):
    page = visit(worker, "jobs")
    model = {"id": "demo", "aliases": [], "description": HOSTILE, "architecture": HOSTILE, "tasks": [HOSTILE]}
    model |= {"served": True, "source": HOSTILE}
    refusal = {"error": HOSTILE, "code": "invalid_request", "field": HOSTILE, "hint": HOSTILE}
    job = {"id": f"a/{HOSTILE}", "status": "FAILED", "action": "generate", "model": HOSTILE, "age_s": 1.0}
    job |= {"prompt": HOSTILE, "error": HOSTILE, "caller": HOSTILE}
    page.route("**/models", lambda route: route.fulfill(json={"models": [model]}))
    page.route("**/plan", lambda route: route.fulfill(status=400, json=refusal))
    page.route("**/v2/page/run", lambda route: route.fulfill(status=400, json=refusal))
    page.route("**/jobs*", lambda route: route.fulfill(json={"jobs": [job]}))
    page.route(
        "**/health", lambda route: route.fulfill(json={"status": HOSTILE, "jobs": {}, "resident_models": [HOSTILE]})
    )
    page.goto(f"{worker}/ui#create")
    page.locator("[data-field=model] .hint", has_text=HOSTILE).wait_for()
    desk.prompt(page, HOSTILE)
    desk.press(page)
    page.locator(".general", has_text=HOSTILE).wait_for()
    for address in ("jobs", "admin/worker", "admin/queue", "admin/models"):
        page.goto(f"{worker}/ui#{address}")
        page.locator("main", has_text="onerror").wait_for()
        assert page.locator("main script, main img").count() == 0
        assert not page.title().isdecimal()


def test_the_program_lines_hold_the_request_and_no_key(worker, visit):
    page = visit(worker)
    desk.prompt(page, 'it\'s a "frog"')
    desk.number(page, "num_inference_steps", 2)
    page.get_by_role("button", name="Copy as…").first.click()
    texts = dict(
        zip(
            page.locator("dialog summary").all_inner_texts(),
            page.locator("dialog pre").all_text_contents(),
            strict=True,
        )
    )
    assert list(texts) == ["curl", "Python", "JavaScript", "image_client"]
    for name in ("Python", "image_client"):
        compile(texts[name], name, "exec")
        assert json.dumps('it\'s a "frog"') in texts[name]
    assert 'ImageClient("selfhosted", base_url="http://127.0.0.1' in texts["image_client"]


def an_image_that_tells(request):
    """Return the smallest PNG that says it was made by this request."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    told = b"generation\0" + json.dumps({"input": request}).encode()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", told) + pixels + chunk(b"IEND", b"")


def asked(address):
    with urllib.request.urlopen(address, timeout=120) as answer:
        return json.load(answer)


def test_every_model_of_the_box_has_a_form_that_says_what_its_schemas_examples_say(worker, visit):
    page = visit(worker)
    page.locator("[data-field=prompt] textarea").wait_for()
    models = [model["id"] for model in asked(f"{worker}/models")["models"] if model["served"]]
    assert len(models) > 10
    for model in models:
        schema = asked(f"{worker}/models/{model}/schema")
        for example in schema["examples"]:
            desk.drop(page, "main", an_image_that_tells(example))
            page.locator(".note", has_text="own request").wait_for()
            page.locator(".note").evaluate_all("notes => notes.forEach(note => note.remove())")
            page.get_by_role("button", name="Copy as…").first.click()
            line = page.locator("dialog pre").first.text_content()
            page.keyboard.press("Escape")
            page.locator("dialog").wait_for(state="detached")
            body = json.loads(line.split(" -d '", 1)[1].removesuffix("'").replace("'\\''", "'"))
            assert body == {name: value for name, value in example.items() if name != "action"}, model
        fields = set(page.locator(".form [data-field]").evaluate_all("nodes => nodes.map(node => node.dataset.field)"))
        unsent = {"action", "traceparent", "model", "arm", "s3Config", "progress", "previews", "profile"}
        several = schema["properties"].get("images", {}).get("maxItems") != 1
        assert schema["properties"].keys() - unsent - (set() if several else {"images"}) <= fields, model
