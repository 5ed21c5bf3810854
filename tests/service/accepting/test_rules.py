"""From a request to a job: every rule that is checked before a weight is touched."""

import base64
import io

import pytest
from PIL import Image

from tests.asking import perform
from tests.fakes.engine import make_context
from worker.catalog.call import Model
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter, UnsupportedModel, WorkerError
from worker.core.model import ModelSource, ModelSpec, Task
from worker.core.request import MAX_SEED, GenerationRequest
from worker.service.accepting.rules import notes_on


def image(width=64, height=64, format_="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, format_)
    return base64.b64encode(out.getvalue()).decode()


async def refused(context, kind=InvalidRequest, **fields):
    with pytest.raises(kind) as failure:
        await context.draw(**fields)
    assert context.builder.built == 0
    return failure.value


async def test_the_task_is_inferred_from_the_inputs(context):
    assert (await context.accept()).call.task is Task.TEXT_TO_IMAGE
    assert (await context.accept(image=image())).call.task is Task.IMAGE_TO_IMAGE
    assert (await context.accept(model="any", image=image())).call.task is Task.IMAGE_TO_IMAGE
    assert (await context.accept(model="editor", image=image())).call.task is Task.IMAGE_EDITING


async def test_the_task_may_be_said(context):
    assert (await context.accept(task="image-to-image", image=image())).call.task is Task.IMAGE_TO_IMAGE
    assert (await context.accept(task="text-to-image")).call.pipeline == "StableDiffusionPipeline"


async def test_a_task_that_the_model_does_not_serve_is_refused(context):
    error = await refused(context, task="image-editing", image=image())
    assert error.field == "task"
    assert "is not one of tiny, which serves text-to-image, image-to-image." in error.message


async def test_an_image_for_a_model_that_takes_none_is_refused(context):
    error = await refused(context, model="org/sdxl", image=image())
    assert error.field == "image"
    assert "(an image was sent)" in error.message
    error = await refused(context, task="text-to-image", image=image())
    assert error.field == "image"


async def test_a_class_that_cannot_be_served_is_refused_with_its_reason(context):
    error = await refused(context, UnsupportedModel, model="prior")
    assert "prior is a KandinskyV22PriorPipeline, which makes embeddings for another model" in error.message
    assert error.field == "model"


@pytest.mark.parametrize(("model", "task"), [("tiny", "image-to-image"), ("editor", None)])
async def test_a_task_that_needs_an_image_says_so(context, model, task):
    error = await refused(context, model=model, **({"task": task} if task else {}))
    assert "image is required for" in error.message
    assert error.field == "image"


async def test_strength_without_an_image_is_refused(context):
    error = await refused(context, UnknownParameter, strength=0.5)
    assert error.field == "strength"
    assert "image" in error.message


async def test_strength_that_leaves_no_step_is_refused(context):
    error = await refused(context, ParameterOutOfRange, image=image(), strength=0.1)
    assert error.field == "strength"
    assert "leaves no step" in error.message


async def test_defaults_come_from_the_family_then_the_model_then_the_request(context):
    family = (await context.accept(model="any")).params
    assert (family["num_inference_steps"], family["guidance_scale"]) == (25, 7.5)
    assert (await context.accept()).params["num_inference_steps"] == 5
    assert (await context.accept(num_inference_steps=7)).params["num_inference_steps"] == 7
    own = await context.accept(model="org/sdxl")
    assert (own.params["guidance_scale"], own.negative_prompt) == (6.5, "blurry")
    said = await context.accept(model="org/sdxl", guidance_scale=2, negative_prompt="dark")
    assert (said.params["guidance_scale"], said.negative_prompt) == (2, "dark")


async def test_lightning_sets_steps_guidance_and_lora_unless_switched_off(context):
    job = await context.accept(model="fast")
    assert (job.params["num_inference_steps"], job.params["guidance_scale"]) == (8, 1.0)
    assert [lora.spec.model for lora in job.adapters] == ["org/fast#8steps.safetensors"]
    off = await context.accept(model="fast", lightning=False)
    assert off.params["num_inference_steps"] > 8
    assert off.adapters == ()
    asked = await context.accept(model="fast", num_inference_steps=4)
    assert (asked.call.lightning, asked.params["num_inference_steps"]) == (True, 4)


async def test_own_loras_come_before_the_requests(context):
    job = await context.accept(model="fast", loras=["org/style"])
    assert [lora.spec.model for lora in job.adapters] == ["org/fast#8steps.safetensors", "org/style"]


@pytest.mark.parametrize(("asked", "granted"), [(None, 100), (30, 30), (5000, 100), (0.5, 0.5)])
async def test_the_timeout_is_bounded_by_the_operators(tmp_path, asked, granted):
    context = make_context(tmp_path, timeout_seconds=100)
    job = await context.accept(**({"timeout_s": asked} if asked else {}))
    assert granted - 1 < job.stop.remaining_s <= granted


@pytest.mark.parametrize(("asked", "granted"), [(None, 40), (30, 30), (5000, 40)])
async def test_the_timeout_of_its_tier_bounds_a_models_jobs(tmp_path, asked, granted):
    path = tmp_path / "tiers.yaml"
    path.write_text(
        "tiers: {A10G: {vram_gb: 24, timeout_s: 40}, L40S: {vram_gb: 48}}\n"
        "models: {short: {source: org/a, architecture: sd1, tier: A10G},\n"
        "  long: {source: org/b, architecture: sd1, tier: L40S}}\n"
    )
    context = make_context(tmp_path, models_yaml=path, default_model="short", timeout_seconds=100)
    fields = {"timeout_s": asked} if asked else {}
    assert granted - 1 < (await context.accept(model="short", **fields)).stop.remaining_s <= granted
    assert (await context.accept(model="long", **fields)).stop.remaining_s > min(asked or 100, 100) - 1


async def test_seeds_count_up_and_wrap(context):
    assert (await context.accept(seed=5, num_images=3)).seeds == (5, 6, 7)
    assert (await context.accept(seed=MAX_SEED, num_images=3)).seeds == (MAX_SEED, 0, 1)


async def test_random_seeds_differ_and_survive_a_javascript_client(context):
    seeds = {(await context.accept()).seeds[0] for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) < 2**53


@pytest.mark.parametrize(
    ("sent", "drawn"), [((64, 64), (64, 64)), ((70, 45), (72, 48)), ((1024, 512), (256, 128)), ((33, 600), (32, 256))]
)
async def test_the_size_follows_the_image_within_the_models_limits(context, sent, drawn):
    job = await context.accept(image=image(*sent))
    assert (job.image.width, job.image.height) == drawn
    assert (job.params["width"], job.params["height"]) == drawn


async def test_a_size_that_was_asked_for_wins_over_the_images(context):
    job = await context.accept(image=image(100, 100), width=128, height=64)
    assert (job.image.width, job.image.height) == (128, 64)


async def test_an_editing_model_chooses_its_own_size(context):
    job = await context.accept(model="editor", image=image(100, 60))
    assert (job.image.width, job.image.height) == (100, 60)
    assert "width" not in job.params


@pytest.mark.parametrize(
    "image", ["aGVsbG8=", "data:image/png;base64,aGVsbG8=", image(format_="ICO"), image(1000, 10), "x"]
)
async def test_an_image_that_cannot_be_taken_is_refused(context, image):
    error = await refused(context, image=image)
    assert (error.code, error.field) == ("invalid_image", "image")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.png", "http://169.254.169.254/latest", "https://localhost/a"])
async def test_an_image_from_a_private_address_is_refused(context, url):
    error = await refused(context, WorkerError, image=url)
    assert error.field == "image"


async def test_the_number_of_images_is_bounded_by_worker_and_model(context):
    assert (await refused(context, num_images=9)).message == "num_images must be between 1 and 8; 9 was sent."
    assert "between 1 and 2" in (await refused(context, model="org/sdxl", num_images=3)).message


async def test_a_prompt_is_needed_but_may_be_empty(context):
    assert "prompt is required" in (await refused(context, prompt=None)).message
    assert (await context.accept(prompt="")).prompt == ""


async def test_a_scheduler_of_another_kind_of_model_is_refused_with_names(context):
    error = await refused(context, scheduler="FlowMatchEulerDiscreteScheduler")
    assert "euler_a" in error.message
    assert (await context.accept(scheduler="Euler a")).scheduler.cls == "EulerAncestralDiscreteScheduler"


async def test_a_family_without_negative_prompt_refuses_it(context, tmp_path):
    path = tmp_path / "flux.yaml"
    path.write_text("models: {flux: {source: org/flux, architecture: flux2, tasks: [text-to-image]}}")
    flux = make_context(tmp_path / "b", models_yaml=path, default_model="flux")
    error = await refused(flux, UnknownParameter, negative_prompt="x")
    assert error.field == "negative_prompt"
    assert "leave it out" in error.message


async def test_what_reproduce_says_is_accepted_and_means_the_same(context):
    first = await context.draw(
        **{"num_images": 2, "sampler": "euler_a", "cfg_scale": 4, "negative_prompt": "dark", "clip_skip": 1},
        image=image(70, 45), strength=0.5, output={"format": "webp", "quality": 70}, timeout_s=50,
    )  # fmt: skip
    again = await context.ask(**first["reproduce"]["input"])
    assert again["images"] == first["images"]
    assert again["parameters"] == first["parameters"]
    assert again["reproduce"] == first["reproduce"]
    before, after = context.engine.ran
    assert (before.negative_prompt, before.scheduler, before.image) == (
        after.negative_prompt,
        after.scheduler,
        after.image,
    )


async def test_what_reproduce_says_keeps_the_choice_of_lightning(tmp_path):
    text = "models: {fast: {source: file:models/sd1, lightning: {lora: 'file:models/l.safetensors', steps: 8}}}"
    make_context(tmp_path)
    (tmp_path / "fast.yaml").write_text(text)
    context = make_context(tmp_path, models_yaml=tmp_path / "fast.yaml", default_model="fast")
    first = await context.draw(lightning=False)
    assert first["reproduce"]["input"]["lightning"] is False
    await context.ask(**first["reproduce"]["input"])
    assert [job.call.lightning for job in context.engine.ran] == [False, False]


async def test_a_small_model_says_kindly_what_it_can_draw(tmp_path):
    from tests.engine.test_generation import quiet
    from worker.app.build import build_worker
    from worker.app.settings import Settings

    worker = build_worker(Settings(volume_dir=tmp_path, device="cpu"))
    known = await worker.operations.generation.accept(GenerationRequest(prompt="two green frogs"), "a")
    assert known.warnings == ()
    other = await perform(worker, {"prompt": "a quokka at the gym", "num_inference_steps": 1}, "b", quiet)
    assert "peach" in other["warnings"][0]
    assert "none of them" in other["warnings"][0]


def test_weights_that_a_model_reads_as_prose_are_said():
    def notes(prompt, architecture="qwen-image", **fields):
        spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="org/m"), architecture=architecture)
        return notes_on(GenerationRequest(prompt=prompt, **fields), Model(spec).call(Task.TEXT_TO_IMAGE))

    assert notes("a (red:1.3) apple") == ("m reads prompt as prose: the weights and BREAK in it are characters to it.",)
    assert notes("x", negative_prompt="(y:2)")[0].startswith("m reads negative_prompt as prose")
    assert notes("a sign (red) at 12:30") == ()
    assert notes("a (red:1.3) apple", architecture="sd1") == ()
