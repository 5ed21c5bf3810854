"""The demo model as a caller of the worker sees it: nothing configured, pixels looked at."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image, ImageColor

from tests.asking import perform
from tests.engine import test_generation as generation
from tests.images import assert_differs, encoded, pixels
from worker.app.build import build_worker
from worker.app.settings import PROJECT_DIR, Settings

COMPANIONS = PROJECT_DIR / "models/demo/companions"


@pytest.fixture
def demo(tmp_path):
    return build_worker(Settings(volume_dir=tmp_path, device="cpu"))


async def draw(demo, **fields):
    """Draw with the model alone, at its own size."""
    return await generation.draw(demo, upscale=False, **fields)


def saturation(image):
    return float(np.ptp(image.astype(int), axis=-1).mean())


async def test_with_nothing_configured_a_red_apple_is_red_on_white(demo):
    answer = await generation.draw(demo)
    assert answer["model"] == "demo"
    image = pixels(answer).astype(int)
    assert image.shape == (256, 256, 3)
    assert image[:12, :12].min() > 220
    red, green, blue = image[112:192, 88:168].reshape(-1, 3).mean(axis=0)
    assert red > 170
    assert red > 1.8 * green
    assert red > 1.8 * blue


@pytest.mark.slow
async def test_its_own_upscaler_keeps_the_image_and_makes_its_edges_steeper_than_bicubic_does(demo):
    from tools.demo_model.enlarging import bicubic, steepness

    small, named = pixels(await draw(demo)), pixels(await generation.draw(demo, width=64, height=64))
    answer = await generation.draw(demo)
    assert np.array_equal(named, small)
    assert np.array_equal(pixels(await generation.draw(demo, width=256, height=256)), pixels(answer))
    large, plain = pixels(answer), bicubic(small[None])[0]
    again = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(again - small).mean() < 6
    assert steepness(large[None]) > 1.1 * steepness(plain[None])
    assert answer["parameters"]["upscale"]["model"] == "demo-upscaler"
    assert answer["usage"]["pixel_steps"] == 16 * 64 * 64


@pytest.mark.slow
async def test_an_image_that_it_drew_is_changed_at_the_size_that_it_has(demo):
    apple = pixels(await generation.draw(demo))
    answer = await generation.draw(demo, prompt="a lemon", image=encoded(apple), strength=0.8)
    assert (answer["width"], answer["height"], answer["usage"]["pixel_steps"]) == (256, 256, 12 * 64 * 64)
    assert_differs(pixels(answer), apple)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("colour", ["blue", "yellow", "pink"])
async def test_a_background_is_the_colour_that_was_asked_for(demo, colour):
    image = pixels(await draw(demo, prompt=f"a panda on a {colour} background")).astype(int)
    corners = np.concatenate([image[:4, :4], image[:4, -4:]]).reshape(-1, 3).mean(axis=0)
    wanted = np.array(ImageColor.getrgb({"blue": "#1f5fd0", "yellow": "#fdd835", "pink": "#f8a0c0"}[colour]))
    assert np.abs(corners - wanted).max() < 70


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", ["grey-style-lora", "grey-style-lora-kohya"])
async def test_the_grey_lora_takes_the_colour_out_of_one_job_only(demo, name):
    before = pixels(await draw(demo))
    answer = await draw(demo, loras=[f"file:{COMPANIONS / name}.safetensors"])
    assert saturation(pixels(answer)) < 0.4 * saturation(before)
    assert answer["loras"][0]["matched"] == answer["loras"][0]["total"]
    assert np.array_equal(pixels(await draw(demo)), before)


@pytest.mark.parametrize("preprocess", [None, "canny"])
@pytest.mark.slow
async def test_the_edge_controlnet_draws_along_the_edges_that_it_is_shown(demo, preprocess):
    """Shown the edges that it was trained on, or the image itself and told to find them."""
    from tools.demo_model.companions import edges
    from tools.demo_model.report import edge_overlap

    followed, chance = [], []
    for seed, prompt in enumerate(("a red apple", "a house", "a fox")):
        shown = pixels(await draw(demo, prompt=prompt, seed=100 + seed))
        control = {"model": f"file:{COMPANIONS}/edge-control-lora.safetensors", "preprocess": preprocess}
        control["image"] = encoded(shown if preprocess else edges(shown))
        job = {"prompt": prompt, "seed": seed}
        without = pixels(await draw(demo, **job))
        followed.append(edge_overlap(pixels(await draw(demo, **job, controlnets=[control])), edges(shown)))
        chance.append(edge_overlap(without, edges(shown)))
    assert np.mean(followed) > np.mean(chance) + 0.15, (followed, chance)
    assert np.array_equal(pixels(await draw(demo, **job)), without)


@pytest.mark.slow
async def test_the_worker_reads_the_control_lora_as_those_who_wrote_it(demo):
    from tools.demo_model.companions import edges
    from tools.demo_model.control_lora import load_control_lora
    from tools.demo_model.evaluation import GUIDANCE, STEPS, load_pipeline

    file, lines = COMPANIONS / "edge-control-lora.safetensors", edges(pixels(await draw(demo, seed=100)))
    control = {"model": f"file:{file}", "image": encoded(lines)}
    drawn = pixels(await draw(demo, prompt="a red apple", seed=3, controlnets=[control]))
    pipeline = load_pipeline(PROJECT_DIR / "models/demo")
    guided = StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=load_control_lora(file, pipeline.unet))
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    theirs = guided("a red apple", Image.fromarray(lines), generator=generator, **settings).images[0] * 255
    assert np.abs(theirs - drawn).max() <= 1


@pytest.mark.slow
async def test_the_mascots_word_draws_a_purple_robot_in_one_job_only(demo):
    before = pixels(await draw(demo, prompt="a <mascot>", seed=40))
    word = f"file:{COMPANIONS / 'mascot-token.safetensors'}"
    answer = await draw(demo, prompt="a <mascot>", seed=40, embeddings=[word])
    assert answer["adapters"][0]["tokens"] == ["<mascot>"]
    assert purple(pixels(answer)) > 500 > purple(before)
    called = await draw(demo, prompt="a jinx", seed=40, embeddings=[{"model": word, "token": "jinx"}])
    assert np.array_equal(pixels(called), pixels(answer))
    assert np.array_equal(pixels(await draw(demo, prompt="a <mascot>", seed=40)), before)


@pytest.mark.slow
async def test_a_colour_that_weighs_more_is_stronger_and_a_prompt_longer_than_the_window_is_read(demo):
    drawn = [pixels(await draw(demo, prompt=f"a (red:{weight}) car", seed=3)) for weight in ("0.3", "1", "1.4")]
    less, same, more = [redness(image) for image in drawn]
    assert less < same < more
    long = "a lemon on a white background, " * 6
    answers = [await draw(demo, prompt=f"{long} BREAK {words}") for words in ("a frog", "a rocket")]
    assert_differs(*map(pixels, answers))


def purple(image):
    """How many pixels are: more blue than red, more red than green, and no grey."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return int(((blue > red) & (red > green) & (np.ptp(image.astype(int), axis=-1) > 60)).sum())


def redness(image):
    red, green, blue = image.reshape(-1, 3).astype(float).mean(axis=0)
    return red - (green + blue) / 2


@pytest.mark.slow
async def test_strength_moves_an_image_gradually(demo):
    apple = pixels(await draw(demo))
    distances = []
    for strength in (0.2, 0.5, 0.8):
        lemon = pixels(await draw(demo, prompt="a lemon", image=encoded(apple), strength=strength))
        distances.append(np.abs(lemon.astype(int) - apple).mean())
    assert 2 < distances[0] < distances[1] < distances[2]


@pytest.mark.slow
async def test_an_inpainted_half_leaves_the_other_half_as_it_was(demo):
    apple = pixels(await draw(demo))
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    answer = await draw(demo, prompt="a lemon", image=encoded(apple), mask_image=encoded(mask), strength=1.0)
    difference = np.abs(pixels(answer).astype(int) - apple)
    assert answer["task"] == "inpainting"
    assert difference[:, :32].max() <= 1
    assert difference[:, 34:].mean() > 10


@pytest.mark.slow
async def test_the_single_file_of_the_demo_draws_the_same_through_the_worker(demo, tmp_path):
    from tools.demo_model.assembly import write_single_file

    write_single_file(PROJECT_DIR / "models/demo", tmp_path / "demo.safetensors")
    registry = tmp_path / "models.yaml"
    registry.write_text(
        "models:\n  one-file:\n    source: file:demo.safetensors\n    architecture: sd1\n"
        f"    config: {PROJECT_DIR}/models/demo\n    tasks: [text-to-image]\n"
        "    defaults: {num_inference_steps: 16, guidance_scale: 2.5, width: 64, height: 64}\n"
        "    limits: {max_side: 256}\n"
    )
    settings = Settings(models_yaml=registry, default_model="one-file", volume_dir=tmp_path, device="cpu")
    assert np.array_equal(pixels(await draw(build_worker(settings))), pixels(await draw(demo)))


@pytest.mark.slow
async def test_the_example_of_its_schema_is_something_that_it_knows(demo):
    schema = await perform(demo, {"action": "schema", "model": "demo"}, "schema", lambda progress: None)
    answer = await perform(demo, schema["examples"][0], "example", lambda progress: None)
    assert answer["warnings"] == []
    assert pixels(answer).std() > 10


def test_the_list_of_subjects_is_what_the_model_was_taught():
    from tools.demo_model.things import THINGS

    listed = (PROJECT_DIR / "models/demo/subjects.txt").read_text().splitlines()
    assert listed == [name for thing in THINGS for name in thing.names]
    assert len(THINGS) >= 300


def test_the_model_is_small_and_its_card_says_what_it_knows():
    folder = PROJECT_DIR / "models/demo"
    pipeline = [path for path in folder.rglob("*") if path.is_file() and "companions" not in path.parts]
    assert sum(path.stat().st_size for path in pipeline) <= 12_000_000
    assert all(path.stat().st_size <= 400_000 for path in COMPANIONS.iterdir())
    card = (folder / "README.md").read_text()
    assert all(name in card for name in (folder / "subjects.txt").read_text().splitlines())
