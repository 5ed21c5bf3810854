"""AUTOMATIC1111's API over HTTP, as its clients call it."""

import base64
import io
import json
import re
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.fakes.engine import flat, shelf
from tests.fakes.web_worker import WebWorker
from tests.transport.web.a1111_documented import ANSWERS, INFO, REFUSED, TAKEN, missing
from tests.transport.web.uploads import png
from tests.waiting import LIMIT_S, until
from worker.catalog.samplers import read_name
from worker.catalog.schedulers import SCHEDULES
from worker.core.image import Raster

SMALL = {"prompt": "an apple", "width": 64, "height": 64, "steps": 4}
IMAGE = base64.b64encode(png(64, 64)).decode()


def api(served: WebWorker, path: str, payload: object = None, **options: object) -> httpx.Response:
    if payload is None:
        return served.http.get(f"/sdapi/v1/{path}", **options)
    return served.http.post(f"/sdapi/v1/{path}", json=payload, **options)


def info(answer: httpx.Response) -> dict:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.json()["info"])


def picture(data: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


CHANGES = {  # of the documented defaults: what has to be said
    "txt2img": SMALL,
    "img2img": SMALL | {"init_images": [IMAGE]},
    "png-info": {"image": IMAGE},
    "extra-single-image": {"image": IMAGE, "upscaler_1": "larger"},
    "options": {"sd_model_checkpoint": "tiny"},
}


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory):
    """A worker with an upscaler among its models."""
    root = tmp_path_factory.mktemp("enlarging")
    entries = json.loads(shelf(root).read_text())
    companion = Path(__file__).parents[3] / "models/demo/companions/sharp-x4-upscaler.safetensors"
    entries["models"]["larger"] = {"source": f"file:{companion}", "tasks": ["upscaling"]}
    (root / "more.yaml").write_text(json.dumps(entries))
    with WebWorker(root, models_yaml=root / "more.yaml", allowed_model_dirs=[root, companion.parent]) as served:
        yield served


@pytest.mark.parametrize("route", ANSWERS)
def test_an_answer_has_the_documented_keys_and_types(enlarging, route):
    method, path = route.split(" ")
    name = path.rpartition("/")[2]
    body = TAKEN.get(route, {}) | CHANGES.get(name, {}) if method == "POST" else None
    answer = enlarging.http.request(method, path, json=body)
    assert answer.status_code == (400 if route in REFUSED else 200), answer.text
    if route in REFUSED:
        assert re.match(rf"{path.partition('/v1/')[2]} is not served: \S", answer.json()["detail"])
    assert missing(answer.json(), ANSWERS[route]) == []
    if name in ("txt2img", "img2img"):
        facts = info(answer)
        assert missing(facts, INFO, "info") == []
        assert not [text for text in facts["warnings"] if "Ignored" in text]  # every documented field is known


def test_every_route_that_is_served_stands_in_the_table(enlarging):
    paths = enlarging.http.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, item in paths.items() for method in item if "/sdapi/" in path}
    assert {route for route in served if not route.startswith("HEAD")} == ANSWERS.keys() - REFUSED


def test_the_payload_that_librechats_tool_sends_draws_and_says_what_it_reads(served):
    sent = {"prompt": "an apple", "negative_prompt": "blurry", "cfg_scale": 4.5, "steps": 22}
    api(served, "options", {"sd_model_checkpoint": "any"})
    try:
        answer = api(served, "txt2img", sent | {"width": 1024, "height": 1024})
    finally:
        api(served, "options", {"sd_model_checkpoint": "tiny"})
    facts = info(answer)
    assert picture(answer.json()["images"][0]).size == (1024, 1024)
    assert (facts["width"], facts["height"]) == (1024, 1024) and facts["seed"] >= 0
    assert facts["infotexts"][0].split("\n")[-1].startswith("Steps: 22")


def test_seeds_count_over_batches_and_iterations_and_infotexts_go_along(served):
    answer = api(served, "txt2img", SMALL | {"seed": 7, "n_iter": 2, "batch_size": 2, "negative_prompt": "blurry"})
    facts = info(answer)
    assert facts["all_seeds"] == [7, 8, 9, 10]
    assert (facts["batch_size"], len(answer.json()["images"])) == (2, 4)
    image = picture(answer.json()["images"][1])
    assert image.getpixel((0, 0))[0] == 8  # as the engine draws the seed
    assert "Negative prompt: blurry" in image.text["parameters"] and "Seed: 8" in image.text["parameters"]
    assert facts["infotexts"][1].startswith("an apple\nNegative prompt: blurry\nSteps: 4")
    read = api(served, "png-info", {"image": answer.json()["images"][1]}).json()["parameters"]
    assert (read["Prompt"], read["Seed"], read["Size-1"]) == ("an apple", "8", "64")


def test_a_random_seed_is_told(served):
    assert info(api(served, "txt2img", SMALL | {"seed": -1}))["seed"] >= 0


def test_what_clients_always_send_is_ignored_and_told_once(served):
    always = {
        "save_images": False, "script_args": [], "script_name": None, "do_not_save_grid": True, "styles": [],
        "subseed": -1, "subseed_strength": 0, "s_churn": 0, "s_noise": 1.0, "eta": 1.0, "restore_faces": False,
        "tiling": False, "override_settings_restore_afterwards": True, "sampler_name": "Euler a",
        "sampler_index": "Euler", "scheduler": "automatic", "hr_upscaler": "Latent", "hr_scale": 2, "enable_hr": False,
        "alwayson_scripts": {"ADetailer": {"args": [False]}, "sampler": {"args": ["x"]}}, "some_extension": {"a": 1},
    }  # fmt: skip
    always |= {"url": "http://host", "auth": "anybody:a key"}  # as SillyTavern sends what it was told itself
    answer = api(served, "txt2img", SMALL | always)
    facts = info(answer)
    assert "a key" not in answer.text and answer.json()["parameters"]["sampler_name"] == "Euler a"
    assert facts["warnings"] == ["Ignored here: alwayson_scripts.sampler, auth, some_extension, url."]
    assert facts["sampler_name"] == "Euler a"
    assert served.context.engine.ran[-1].scheduler.name == "EulerAncestralDiscreteScheduler"


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restore_faces", True),
        ("tiling", True),
        ("styles", ["oil"]),
        ("script_name", "X/Y/Z plot"),
        ("subseed_strength", 0.5),
        ("s_churn", 3),
        ("seed_resize_from_w", 512),
        ("batch_size", 0),
        ("override_settings", "x"),
        ("hr_scale", 99),
    ],
)
def test_what_is_not_served_is_refused_by_name_and_nothing_is_drawn(served, field, value):
    answer = api(served, "txt2img", SMALL | {"enable_hr": field.startswith("hr"), field: value})
    assert answer.status_code == 400
    assert answer.json()["field"] == field and field in answer.json()["detail"]
    assert answer.json()["errors"] == answer.json()["detail"]
    assert served.context.builder.built == 0


def test_our_names_are_told_as_theirs(served):
    answer = api(served, "txt2img", SMALL | {"steps": 100_000})
    assert (answer.status_code, answer.json()["field"]) == (400, "steps")


def test_a_model_is_chosen_for_oneself_and_not_for_others(tmp_path):
    with WebWorker(tmp_path, api_keys="0123456789abcdefghij,abcdefghij0123456789") as served:
        ann, bob = (
            {"auth": (name, key)} for name, key in (("ann", "0123456789abcdefghij"), ("", "abcdefghij0123456789"))
        )
        assert api(served, "options").status_code == 401
        assert api(served, "options", {"sd_model_checkpoint": "any [1234]", "unknown": 1}, **ann).status_code == 200
        assert api(served, "options", **ann).json()["sd_model_checkpoint"] == "any"
        assert api(served, "options", **bob).json()["sd_model_checkpoint"] == "tiny"
        models = [info(api(served, "txt2img", SMALL, **who))["sd_model_name"] for who in (ann, bob)]
        over = SMALL | {"override_settings": {"sd_model_checkpoint": "small", "CLIP_stop_at_last_layers": 2}}
        assert models == ["any", "tiny"]
        assert info(api(served, "txt2img", over, **ann))["clip_skip"] == 2
        assert served.context.engine.ran[-1].params["clip_skip"] == 1
        refused = api(served, "options", {"sd_model_checkpoint": "nothing"}, **ann)
        assert (refused.status_code, refused.json()["field"]) == (400, "sd_model_checkpoint")


def test_progress_shows_the_image_so_far_and_interrupt_ends_it(served):
    engine, answers = served.context.engine, []
    engine.gate.clear()
    drawing = threading.Thread(target=lambda: answers.append(api(served, "txt2img", SMALL)))
    drawing.start()
    assert engine.inside.wait(LIMIT_S)
    before = api(served, "progress").json()
    assert (before["progress"], before["state"]["job_count"]) == (0.0, 1)
    api(served, "interrupt", {})
    drawing.join()
    assert (answers[0].status_code, answers[0].json()["error"]) == (409, "job_cancelled")
    engine.gate.set()
    idle = api(served, "progress").json()
    assert (idle["progress"], idle["state"]["job"], idle["current_image"]) == (0.0, "", None)


def test_progress_counts_steps_and_comes_without_the_image_if_so_wished(served):
    engine = served.context.engine
    engine.steps = 2

    def hold(job, seed):  # the last step is told before this is drawn
        engine.gate.wait(LIMIT_S)
        return flat(job, seed)

    engine.pixels = hold
    drawing = threading.Thread(target=lambda: api(served, "txt2img", SMALL))
    engine.gate.set()
    engine.pixels = hold
    engine.gate.clear()
    drawing.start()
    assert engine.inside.wait(LIMIT_S)
    engine.gate.set()
    drawing.join()
    until(lambda: not api(served, "progress").json()["state"]["job"])
    assert api(served, "progress", params={"skip_current_image": True}).json()["current_image"] is None


def test_skip_ends_the_job_that_is_drawn_now(served):
    engine, answers = served.context.engine, []
    engine.gate.clear()
    drawing = threading.Thread(target=lambda: answers.append(api(served, "txt2img", SMALL)))
    drawing.start()
    assert engine.inside.wait(LIMIT_S)
    assert api(served, "skip", {}).json() is None
    drawing.join()
    assert answers[0].status_code == 409
    engine.gate.set()


def test_an_image_is_drawn_over(served):
    answer = api(served, "img2img", SMALL | {"init_images": [f"data:image/png;base64,{IMAGE}"], "seed": 3})
    job = served.context.engine.ran[-1]
    assert info(answer)["denoising_strength"] == 0.75
    assert (job.call.task, job.params["strength"]) == ("image-to-image", 0.75)
    assert "init_images" not in answer.json()["parameters"]


def halves(width: int, height: int) -> str:
    """Return an image that is red on its left half and blue on its right one."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def mask(width: int, height: int) -> str:
    """Return a mask whose left half is white."""
    image = Image.new("L", (width, height), 0)
    image.paste(255, (0, 0, width // 2, height))
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def sent_to(served: WebWorker, field: str) -> Raster:
    (media,) = [media for media in served.context.engine.ran[-1].media if media.field == field]
    return media.images[0]


def at(raster: Raster, x: int, y: int) -> tuple[int, ...]:
    channels = len(raster.mode)
    start = (y * raster.width + x) * channels
    return tuple(raster.data[start : start + channels])


MASKED = {"model": "any", "override_settings": {"sd_model_checkpoint": "any"}, "init_images": [halves(64, 64)]}


def test_a_mask_is_blurred_inverted_and_what_it_covers_filled(served):
    plain = SMALL | MASKED | {"mask": mask(64, 64), "mask_blur": 0, "inpainting_fill": 1}
    assert api(served, "img2img", plain).status_code == 200
    assert [at(sent_to(served, "mask_image"), x, 32)[0] for x in (0, 63)] == [255, 0]
    assert at(sent_to(served, "image"), 5, 32) == (255, 0, 0)
    api(served, "img2img", plain | {"inpainting_mask_invert": 1, "mask_blur": 6})
    edge = [at(sent_to(served, "mask_image"), x, 32)[0] for x in (0, 31, 63)]
    assert edge[0] == 0 and 60 < edge[1] < 200 and edge[2] == 255
    api(served, "img2img", plain | {"inpainting_fill": 0})
    assert at(sent_to(served, "image"), 30, 32) == (0, 0, 255)  # the colour of what is kept beside it
    for fill in (2, 3, 4):
        refused = api(served, "img2img", plain | {"inpainting_fill": fill})
        assert (refused.status_code, refused.json()["field"]) == (400, "inpainting_fill")


@pytest.mark.parametrize(("mode", "seen"), [(0, (255, 0, 0)), (1, (0, 0, 255)), (2, (255, 0, 0))])
def test_an_image_of_another_shape_is_stretched_cropped_or_padded(served, mode, seen):
    image = Image.open(io.BytesIO(base64.b64decode(halves(128, 64))))
    image.paste((0, 0, 255), (32, 0, 128, 64))  # a quarter is red
    out = io.BytesIO()
    image.save(out, "PNG")
    sent = {"init_images": [base64.b64encode(out.getvalue()).decode()], "resize_mode": mode}
    assert api(served, "img2img", SMALL | sent).status_code == 200
    assert at(sent_to(served, "image"), 8, 32) == seen
    assert at(sent_to(served, "image"), 32, 1)[2] == 255


def test_several_images_are_drawn_over_each_by_itself_and_their_number_is_the_batch_size(served):
    images = [base64.b64encode(png(64, 64, colour)).decode() for colour in ((9, 0, 0), (0, 9, 0))]
    answer = api(served, "img2img", SMALL | {"init_images": images, "batch_size": 3, "n_iter": 2, "seed": 5})
    facts = info(answer)
    assert facts["all_seeds"] == [5, 6, 7, 8] and facts["batch_size"] == 2
    assert len(answer.json()["images"]) == 4
    jobs = sorted(served.context.engine.ran[-4:], key=lambda job: job.seeds)
    assert [job.seeds for job in jobs] == [(5,), (6,), (7,), (8,)]
    assert [at(job.media[0].images[0], 9, 9) for job in jobs] == [(9, 0, 0), (0, 9, 0)] * 2
    many = api(served, "img2img", SMALL | {"init_images": images, "batch_size": 2, "n_iter": 9})
    assert (many.status_code, many.json()["field"]) == (400, "n_iter")


def test_a_mask_is_blurred_along_each_axis_by_itself(served):
    plain = SMALL | MASKED | {"mask": mask(64, 64), "inpainting_fill": 1}
    edges = []
    for blur in ({"mask_blur_x": 0, "mask_blur_y": 6}, {"mask_blur_x": 6, "mask_blur_y": 0}, {}):
        assert api(served, "img2img", plain | blur).status_code == 200
        edges.append(at(sent_to(served, "mask_image"), 31, 32)[0])
    assert edges[0] == 255 and edges[1] < 200 and edges[2] < 200  # 4 when nothing is said
    refused = api(served, "img2img", plain | {"mask_blur_y": -1})
    assert (refused.status_code, refused.json()["field"]) == (400, "mask_blur_y")


@pytest.mark.parametrize("sent", [{}, {"init_images": [IMAGE, IMAGE]}, {"init_images": [IMAGE], "resize_mode": 3}])
def test_an_image_too_few_or_too_many_is_refused(served, sent):
    answer = api(served, "img2img", SMALL | sent)
    assert answer.status_code == 400 and answer.json()["field"] in ("init_images", "resize_mode")


def test_hires_fix_draws_each_image_again_over_the_larger_one(served):
    hires = {
        "enable_hr": True,
        "hr_scale": 2,
        "hr_second_pass_steps": 3,
        "denoising_strength": 0.5,
        "hr_prompt": "a pear",
    }
    answer = api(served, "txt2img", SMALL | hires | {"seed": 5, "batch_size": 2, "hr_upscaler": "Latent"})
    facts = info(answer)
    assert facts["all_seeds"] == [5, 6] and (facts["width"], facts["height"]) == (128, 128)
    assert "hr_upscaler Latent: the image is enlarged and drawn over, not its latents." in facts["warnings"]
    first, *again = served.context.engine.ran
    assert (first.call.task, first.seeds, first.prompt) == ("text-to-image", (5, 6), "an apple")
    assert {job.seeds for job in again} == {(5,), (6,)}
    assert {(job.call.task, job.params["strength"], job.prompt) for job in again} == {("image-to-image", 0.5, "a pear")}
    assert [at(job.media[0].images[0], 9, 9)[0] for job in sorted(again, key=lambda job: job.seeds)] == [5, 6]


def test_a_control_unit_is_one_of_controlnets_and_foreign_modules_are_refused(served):
    unit = {"model": "org/canny [d14c016b]", "module": "canny", "image": IMAGE, "weight": 0.5, "guidance_end": 0.9}
    off = {"enabled": False, "model": "None"}
    sent = {"alwayson_scripts": {"ControlNet": {"args": [unit | {"module": "openpose_full"}, off]}}}
    refused = api(served, "txt2img", SMALL | sent)
    assert (refused.status_code, refused.json()["field"]) == (400, "alwayson_scripts")
    assert "openpose_full" in refused.json()["detail"]
    from worker.wire.foreign.a1111_units import control_units

    assert control_units({"controlnet": {"args": [unit, off]}}) == (
        [{"model": "org/canny", "image": IMAGE, "preprocess": "canny", "scale": 0.5, "end": 0.9}],
        [],
    )


def test_adapters_in_the_operators_folders_are_listed_and_called_up_by_name(tmp_path):
    for name in ("loras/style/ink", "hypernetworks/odd", "embeddings/badhand", "embeddings/.hidden"):
        path = tmp_path / "volume" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with WebWorker(tmp_path) as served:
        assert [lora["name"] for lora in api(served, "loras").json()] == ["style/ink"]
        assert [entry["name"] for entry in api(served, "hypernetworks").json()] == ["odd"]
        assert [*api(served, "embeddings").json()["loaded"]] == ["badhand"]
        refused = api(served, "txt2img", SMALL | {"negative_prompt": "badhand, blurry"})
        assert refused.json()["field"] == "embeddings"  # it was asked for, and is no file of that kind
        assert api(served, "txt2img", SMALL | {"negative_prompt": "badhands"}).status_code == 200


def test_every_sampler_and_schedule_that_is_listed_can_be_named(served):
    for entry in api(served, "samplers").json():
        named = read_name(entry["name"])
        assert named is not None and named.sampler is not None and named.sampler.name in entry["aliases"]
    assert {entry["name"] for entry in api(served, "schedulers").json()} == {"automatic", *SCHEDULES}
    assert {entry["label"] for entry in api(served, "schedulers").json()} >= {"Karras", "Automatic"}


def test_an_upscaler_has_to_be_named_and_interrogate_is_refused_by_name(served):
    for fields in (
        {"upscaler_1": "None"},
        {"upscaler_1": "x", "gfpgan_visibility": 1},
        {"upscaler_1": "x", "resize_mode": 1},
    ):
        answer = api(served, "extra-single-image", {"image": IMAGE} | fields)
        assert answer.status_code == 400 and answer.json()["field"] in fields
    assert "png-info" in api(served, "interrogate", {"image": IMAGE, "model": "clip"}).json()["detail"]
