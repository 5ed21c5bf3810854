"""Weighted and long prompts in whole jobs, through the RunPod door: what a caller sees."""

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.asking import perform
from tests.engine.test_generation import draw
from tests.images import assert_all_differ, assert_differs, encoded, gradient, pixels
from worker.app.queue import build_door
from worker.core.errors import ParameterOutOfRange
from worker.core.request import GenerationRequest

_ids = itertools.count()
ENDS = ("in green grass on a sunny day", "by night, black and wet and cold")
MODELS = ("tiny", "tiny-xl", "tiny-flux", "tiny-sd3")


async def handled(worker, **fields):
    door = build_door(worker, concurrency=1)
    return await door.handle({"id": f"worded-{next(_ids)}", "input": {"prompt": "a red apple", "seed": 7, **fields}})


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", MODELS)
async def test_a_weight_changes_the_image_and_a_plain_prompt_stays_what_diffusers_draws(worker, model):
    plain = pixels(await handled(worker, model=model, prompt_weighting="none"))
    assert np.array_equal(pixels(await handled(worker, model=model)), plain)
    assert np.array_equal(pixels(await handled(worker, model=model, prompt_weighting="a1111")), plain)
    # 1 is no weight: the same words, read by the worker
    assert np.array_equal(pixels(await handled(worker, model=model, prompt="a (red:1.0) apple")), plain)
    drawn = [pixels(await handled(worker, model=model, prompt=f"(a red apple:{w})")) for w in (0.1, 3)]
    as_text = await handled(worker, model=model, prompt="(a red apple:3)", prompt_weighting="none")
    assert_all_differ(pixels(as_text), plain, *drawn)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", MODELS)
async def test_several_images_of_one_prompt_equal_their_single_runs(worker, model):
    prompt = {"prompt": "a (red:1.4) apple", "model": model}
    several = await handled(worker, **prompt, num_images=2)
    for index in range(2):
        alone = pixels(await handled(worker, **prompt, seed=7 + index)).astype(int)
        assert np.abs(alone - pixels(several, index)).max() <= 1


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
async def test_the_end_of_a_long_prompt_is_read(worker, model):
    long = "a red apple, " * 12  # more than the window, letter by letter
    first, second = [await handled(worker, model=model, prompt=long + end) for end in ENDS]
    assert_differs(pixels(first), pixels(second))
    assert first["warnings"] == []
    cut = [await handled(worker, model=model, prompt=long + end, prompt_weighting="none") for end in ENDS]
    assert np.array_equal(pixels(cut[0]), pixels(cut[1]))
    assert "prompt is 143 tokens long and the model reads 75" in cut[0]["warnings"][0]
    assert "a red apple" in cut[0]["warnings"][0]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["tiny", "tiny-xl", "tiny-sd3", "tiny-flux"])
async def test_jobs_that_share_a_call_draw_what_each_draws_alone(worker, model):
    # Weighted, prose to a T5, plain, and longer than CLIP's window.
    prompts = ["a (red:1.5) apple", "a (red) pear", "a pear", "a red apple, " * 12]
    await handled(worker, model=model)
    service, dark = worker.operations.generation, {"negative_prompt": "dark"} if model != "tiny-flux" else {}
    jobs = [
        await service.accept(GenerationRequest(model=model, prompt=text, seed=7 + at, **dark), text)
        for at, text in enumerate(prompts)
    ]
    batch = await asyncio.to_thread(worker.provisioner.provide, jobs[0], lambda progress: None)
    for shared in (jobs[::2], jobs):
        run = replace(batch, jobs=tuple(shared))
        report = await worker.engine.call(lambda engine, run=run: engine.run(run, lambda progress: None), "test")
        for job, outcome in zip(shared, report.outcomes, strict=False):  # those that fit into its first call
            alone = pixels(await draw(worker, model=model, prompt=job.prompt, seed=job.seeds[0], **dark))
            drawn = np.frombuffer(outcome[0].raster.data, np.uint8).reshape(alone.shape).astype(int)
            assert np.abs(drawn - alone).max() <= 1, job.prompt


async def test_what_a_t5_cannot_read_is_said(worker):
    answer = await handled(worker, model="tiny-flux", prompt="x" * 30, max_sequence_length=20)
    assert answer["warnings"] == [
        "prompt is 31 tokens long and the model reads 19: “xxxxxxxxxxxx” was not read; "
        "shorten it, or raise max_sequence_length if the model can."
    ]
    other = await handled(worker, model="tiny-flux", prompt="y" * 99, prompt_2="short", max_sequence_length=20)
    assert other["warnings"] == []  # the T5 reads prompt_2, and the CLIP looks at the beginning only
    assert (await handled(worker, model="tiny-flux", prompt="x" * 30))["warnings"] == []


@pytest.mark.slow
async def test_weights_work_with_images_adapters_and_without_guidance(worker, zoo):
    weighted, plain = {"prompt": "a (red:1.5) apple"}, {"prompt": "a red apple"}
    image = {"image": encoded(gradient(64, 64)), "strength": 0.8}
    for extra in (
        image,
        {"loras": [f"file:{zoo}/models/lora.safetensors"]},
        {"guidance_scale": 1.0},
        {"negative_prompt": "(blue:1.3), dark"},
        {"scheduler": "euler_a"},
        {"clip_skip": 1},
    ):
        first, second = [pixels(await handled(worker, **words, **extra)) for words in (weighted, plain)]
        assert_differs(first, second)
    edited = [await handled(worker, model="tiny-edit", image=encoded(gradient(64, 64)), **w) for w in (weighted, plain)]
    assert_differs(*map(pixels, edited))


async def test_a_loras_text_encoder_is_heard_in_weighted_prompts_too(worker, settings):
    from safetensors.torch import save_file

    from tests.loras import normal

    names = [f"lora_te_text_model_encoder_layers_{layer}_self_attn_q_proj" for layer in range(3)]
    tensors = {f"{name}.lora_down.weight": normal(4, 32, seed=1) for name in names}
    tensors |= {f"{name}.lora_up.weight": normal(32, 4, seed=2) for name in names}
    folder = settings.volume / "own"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "te.safetensors")
    lora = {"loras": [{"model": f"file:{folder}/te.safetensors", "weight": 2}], "model": "tiny"}
    weighted = {"prompt": "a (red:1.0) apple", "prompt_weighting": "a1111"}
    with_lora = pixels(await handled(worker, **weighted, **lora))
    assert np.array_equal(with_lora, pixels(await handled(worker, **lora)))
    assert_differs(with_lora, pixels(await handled(worker, **weighted)))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny-xl", "prompt_2"),
        ("tiny-xl", "negative_prompt_2"),
        ("tiny-flux", "prompt_2"),
        ("tiny-sd3", "prompt_3"),
        ("tiny-sd3", "negative_prompt_3"),
    ],
)
async def test_prompts_of_single_encoders_are_offered_and_read(worker, model, name):
    schema = await perform(worker, {"action": "schema", "model": model}, "s", lambda progress: None)
    assert name in schema["properties"]
    texts = ({}, {name: "a" * 50}, {name: "?" * 50})
    drawn = [pixels(await handled(worker, model=model, **words)) for words in texts]
    assert_all_differ(*drawn)
    weighted, plain = (f"({'?' * 50}:0.1) apple", f"{'?' * 50} apple")
    assert_differs(*[pixels(await handled(worker, model=model, **{name: text})) for text in (weighted, plain)])


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(("model", "most"), [("tiny", 2), ("tiny-xl", 1), ("tiny-sd3", 1)])
async def test_clip_skip_stays_within_the_encoders_layers(worker, model, most):
    drawn = [pixels(await handled(worker, model=model, clip_skip=skip)) for skip in range(most + 1)]
    assert_all_differ(*drawn)
    with pytest.raises(ParameterOutOfRange, match=f"clip_skip must be at most {most} for {model}") as failure:
        await draw(worker, model=model, clip_skip=most + 1)
    assert failure.value.field == "clip_skip"


async def test_the_schema_says_what_is_read_and_bounds_clip_skip_by_the_family(worker):
    async def properties(model):
        answer = await perform(worker, {"action": "schema", "model": model}, "s", lambda progress: None)
        return answer["properties"]

    first, large, video = [await properties(name) for name in ("tiny", "tiny-xl", "video")]
    assert first["prompt_weighting"]["enum"] == ["auto", "a1111", "none", None]
    assert first["prompt_weighting"]["default"] == "auto"
    assert (first["clip_skip"]["maximum"], large["clip_skip"]["maximum"]) == (11, 10)
    assert {"embeddings", "hypernetworks"} <= first.keys()
    assert "embeddings" in large
    assert "hypernetworks" not in large
    assert not {"embeddings", "hypernetworks", "prompt_weighting"} & video.keys()


async def test_reproduce_names_the_way_of_reading_only_where_it_was_asked_for(worker):
    plain = await handled(worker)
    assert "prompt_weighting" not in plain["reproduce"]["input"]
    first = await handled(worker, prompt="(a:1.2) b", prompt_weighting="none")
    again = await handled(worker, **first["reproduce"]["input"])
    assert np.array_equal(pixels(first), pixels(again))


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
async def test_a_prompt_that_changes_is_heard_from_its_step_on(worker, model):
    async def image(prompt: str) -> np.ndarray:
        answer = await handled(worker, model=model, prompt=prompt, num_inference_steps=4, negative_prompt="dark")
        assert answer["warnings"] == []
        return pixels(answer)

    first, second = await image("an apple"), await image("(blue pear:9)")
    assert np.array_equal(await image("[an apple:(blue pear:9):9]"), first)
    assert np.array_equal(await image("[an apple:(blue pear:9):0]"), second)
    changed = await image("[an apple:(blue pear:9):0.25]")
    assert_all_differ(changed, first, second, await image("[(blue pear:9)|an apple]"))
    assert np.array_equal(await image("[an apple:(blue pear:9):1]"), changed)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
async def test_composed_prompts_guide_together_each_by_its_weight(worker, model, guidance):
    async def image(prompt: str) -> np.ndarray:
        return pixels(await handled(worker, model=model, prompt=prompt, guidance_scale=guidance)).astype(int)

    first, second = await image("a red apple"), await image("a blue pear")
    assert np.abs(await image("a red apple :0.5 AND a red apple :0.5") - first).max() <= 1  # twice the half
    assert np.array_equal(await image("a red apple AND a blue pear :0"), first)
    both = await image("a red apple :0.5 AND a blue pear :0.5")
    assert_all_differ(*(drawn.astype(np.uint8) for drawn in (both, first, second)))
    assert np.abs(await image("a blue pear :0.5 AND a red apple :0.5") - both).max() <= 1


async def test_a_mixed_prompt_leaves_no_trace_and_goes_with_images(worker):
    before = pixels(await handled(worker))
    fields = {"image": encoded(gradient(64, 64)), "strength": 0.5, "num_inference_steps": 8}
    texts = ("an apple", "(blue pear:9)", "[an apple:(blue pear:9):0.25]")  # four steps are drawn: the second changes
    assert_all_differ(*[pixels(await handled(worker, prompt=text, **fields)) for text in texts])
    several = await handled(worker, prompt="a [red apple|blue pear]", num_images=2)
    alone = await handled(worker, prompt="a [red apple|blue pear]", seed=8)
    assert np.array_equal(pixels(several, 1), pixels(alone))
    assert np.array_equal(pixels(await handled(worker)), before)


@pytest.mark.parametrize(("model", "fields"), [("tiny-flux", {}), ("tiny", {"prompt_weighting": "none"})])
async def test_where_mixing_is_not_read_a_warning_says_so(worker, model, fields):
    answer = await handled(worker, model=model, prompt="a [cat|dog] AND a bird", **fields)
    assert [warning.split(" is not read")[0] for warning in answer["warnings"]] == ["prompt: AND", "prompt: [a|b]"]
