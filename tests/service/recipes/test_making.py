"""A recipe is one job: admitted once, paid once, cancelled at any step, with one result."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from tests.asking import perform
from tests.fakes.engine import make_context
from tests.images import encoded
from tests.service.recipes.test_refusals import RIGHT
from tests.waiting import LIMIT_S
from worker.core.errors import (
    InvalidOutput,
    InvalidRequest,
    ParameterOutOfRange,
    QuotaExceeded,
    SourceUnavailable,
    UnknownParameter,
    UnsupportedModel,
)

# Two steps of 5 denoising steps at 64 x 64.
WORK = 2 * 64 * 64 * 5


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/closer.yaml").write_text(RIGHT)
    return tmp_path


@pytest.fixture
def context(folder):
    return make_context(folder)


def closer(context, **fields):
    return context.ask(**{"model": "closer", "prompt": "an apple", "seed": 5, **fields})


async def test_each_step_is_a_job_with_a_seed_of_its_own_and_pixels_go_from_one_to_the_next(context):
    answer = await closer(context, strength=0.8)
    first, second = context.engine.ran
    assert [first.prompt, second.prompt] == ["an apple", "a an apple, closer"]
    assert [first.seeds, second.seeds] == [(5,), (1005,)]
    assert second.params["strength"] == 0.8
    assert second.image == context.engine.pixels(first, 5)
    assert (answer["seed"], answer["seeds"], answer["model"]) == (5, [5], "closer")
    assert [(step["step"], step["seeds"]) for step in answer["steps"]] == [("base", [5]), ("again", [1005])]
    assert answer["timings"]["inference_s"] == 1.0
    assert answer["usage"]["images"] == 1
    assert answer["reproduce"]["input"] == {"model": "closer", "prompt": "an apple", "strength": 0.8, "seed": 5}
    assert "steps" not in await context.draw()


async def test_progress_goes_on_over_all_steps_and_says_which(context):
    told = []
    await perform(context.worker, {"model": "closer", "prompt": "x"}, "job", told.append)
    drawn = [update for update in told if update.phase == "inference"]
    assert {update.total for update in drawn} == {10}
    assert [update.step for update in drawn] == sorted(update.step for update in drawn)
    assert drawn[-1].step == 10
    assert {update.message.partition(":")[0] for update in told} == {"base (1 of 2)", "again (2 of 2)"}


@pytest.mark.parametrize("step", ["base", "again"])
async def test_a_cancel_ends_it_at_whatever_step(context, step):
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(progress):  # told in the engine's own thread, before the first denoising step
        if progress.message.startswith(step) and progress.phase == "load":
            context.engine.gate.clear()
            loop.call_soon_threadsafe(held.set)

    request = {"model": "closer", "prompt": "an apple"}
    task = asyncio.create_task(perform(context.worker, request, "job", hold))
    await asyncio.wait_for(held.wait(), LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(context.engine.ran) == {"base": 1, "again": 2}[step]
    context.engine.gate.set()
    assert (await context.draw())["model"] == "tiny"


async def test_all_steps_are_paid_once_and_before_the_first(folder):
    context = make_context(folder, quota_pixel_steps_per_day=WORK, rate_limit_per_minute=10)
    await perform(context.worker, {"model": "closer", "prompt": "x"}, "one", caller="ann")
    with pytest.raises(QuotaExceeded):
        await perform(context.worker, {"prompt": "x"}, "two", caller="ann")
    with pytest.raises(QuotaExceeded):
        await perform(context.worker, {"model": "closer", "prompt": "x", "strength": 0.4}, "three", caller="ann")
    with pytest.raises(QuotaExceeded, match=f"is {WORK // 2 + 128 * 128 * 5:,} pixel-steps"):
        text = RIGHT.replace("    strength: $", "    width: 128\n    height: 128\n    strength: $")
        (folder / "recipes/closer.yaml").write_text(text)
        context.worker.reload()
        await perform(context.worker, {"model": "closer", "prompt": "x"}, "four", caller="bob")
    assert len(context.engine.ran) == 2


async def test_a_step_that_fails_is_named_and_what_was_not_delivered_is_not_paid(folder):
    context = make_context(folder, quota_pixel_steps_per_day=WORK)
    context.engine.spoiled["a x, closer"] = InvalidOutput("It is black.")
    request = {"model": "closer", "prompt": "x"}
    with pytest.raises(InvalidOutput, match=r"^recipes/closer.yaml:10: steps.again: It is black.") as failed:
        await perform(context.worker, request, "one", caller="ann")
    assert failed.value.field == "model"
    del context.engine.spoiled["a x, closer"]
    await perform(context.worker, request, "two", caller="ann")


@pytest.mark.parametrize(
    ("fields", "error", "field", "said"),
    [
        ({"prompt": None}, InvalidRequest, "prompt", "prompt is required for closer"),
        ({"strength": 0.1}, ParameterOutOfRange, "strength", "strength must be a number between 0.3 and 1; 0.1 was"),
        ({"width": 64}, UnknownParameter, "width", "width is no input of the recipe closer, which takes prompt, stren"),
        ({"loras": ["org/x"]}, UnknownParameter, "loras", "loras is no input"),
        ({"num_images": 1}, UnknownParameter, "num_images", "num_images is no input"),
        ({"task": "inpainting"}, InvalidRequest, "task", "task of closer is text-to-image"),
        (
            {"prompt": "a \0"},
            InvalidRequest,
            "prompt",
            "prompt must be text of at most 8000 characters; text with a NUL",
        ),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_before_anything_is_run(context, fields, error, field, said):
    with pytest.raises(error) as refused:
        await closer(context, **fields)
    assert (refused.value.field, refused.value.message[: len(said)]) == (field, said)
    assert context.builder.built == 0


async def test_a_later_step_that_cannot_be_had_is_known_before_the_first_is_run(folder):
    path = folder / "recipes/closer.yaml"
    path.write_text(RIGHT.replace("model: tiny\n    prompt: a", "model: org/unseen\n    prompt: a"))
    context = make_context(folder, allow_unregistered_models=True)
    with pytest.raises(SourceUnavailable, match=r"^recipes/closer.yaml:10: steps.again: "):
        await closer(context)
    assert context.builder.built == 0


async def test_an_image_is_taken_and_one_that_is_none_is_refused_by_the_name_of_its_input(folder):
    text = RIGHT.replace("  prompt: {", "  photo: {type: image}\n  prompt: {").replace(
        "    prompt: ${inputs.prompt}\n", "    prompt: ${inputs.prompt}\n    image: ${inputs.photo}\n"
    )
    (folder / "recipes/closer.yaml").write_text(text)
    context = make_context(folder)
    sent = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)  # of more than 8,000 characters
    answer = await closer(context, photo=encoded(sent))
    assert context.engine.ran[0].image.data == sent.tobytes()
    assert answer["task"] == "image-to-image"
    assert answer["reproduce"]["input"]["photo"] == encoded(sent)
    with pytest.raises(InvalidRequest, match=r"^recipes/closer.yaml:10: steps.base: image is not") as refused:
        await closer(context, photo="no image")
    assert refused.value.field == "photo"


async def test_the_steps_of_a_model_with_a_fallback_fall_back(folder):
    path = folder / "recipes/closer.yaml"
    path.write_text(RIGHT.replace("steps:\n  base:\n    model: tiny", "steps:\n  base:\n    model: org/sdxl"))
    models = folder / "models.yaml"
    context = make_context(folder)
    models.write_text(models.read_text().replace('"org/sdxl": {', '"org/sdxl": {"fallback": "tiny", '))
    context.worker.reload()
    answer = await closer(context)
    assert [step["model"] for step in answer["steps"]] == ["tiny", "tiny"]
    assert answer["warnings"][0].startswith("base: org/sdxl could not be had")


async def test_its_schema_takes_what_it_takes_and_its_plan_is_the_sum_of_its_steps(context):
    schema = await context.ask(action="schema", model="closer")
    Draft202012Validator.check_schema(schema)
    taken = Draft202012Validator(schema)
    assert taken.is_valid({"prompt": "x", "strength": 0.5, "seed": 1, "output": {"format": "webp"}, "model": "closer"})
    assert not taken.is_valid({"prompt": "x", "strength": 0.1})
    assert not taken.is_valid({"prompt": "x", "width": 64})
    assert not taken.is_valid({"strength": 0.5})
    assert all(taken.is_valid(example) for example in schema["examples"])
    plan = await context.ask(action="plan", model="closer")
    assert [step["step"] for step in plan["steps"]] == ["base", "again"]
    assert plan["pixel_steps"] == sum(step["pixel_steps"] for step in plan["steps"]) == WORK
    assert plan["expected_s"] is None
    await closer(context)
    plan = await context.ask(action="plan", model="closer")
    assert plan["measured"]["jobs"] == 1
    assert plan["expected_s"] > 0


async def test_it_is_listed_logged_and_measured_by_its_own_name_and_has_no_files(context):
    records = []
    context.worker.operations.telemetry._observers.append(type("", (), {"note": lambda _, it: records.append(it)})())
    await closer(context)
    assert [(record.model, record.usage.gpu_seconds, record.outcome) for record in records] == [("closer", 1.5, "ok")]
    listed = {model["id"]: model for model in (await context.ask(action="models"))["models"]}
    assert (listed["closer"]["tasks"], listed["closer"]["source"]) == (["text-to-image"], "recipe")
    for action in ("inspect", "preload", "unload"):
        with pytest.raises(UnsupportedModel, match="closer is a recipe of 2 steps and has no files of its own"):
            await context.ask(action=action, model="closer")


async def test_an_image_says_in_its_file_how_the_recipe_gives_it_again(context):
    answer = await closer(context, output={"format": "png", "metadata": True})
    with Image.open(io.BytesIO(base64.b64decode(answer["image"]))) as image:
        facts = json.loads(image.info["generation"])
    assert facts["input"] == {"model": "closer", "prompt": "an apple", "strength": 0.5, "seed": 5}
    assert facts["model"].startswith("closer#")
