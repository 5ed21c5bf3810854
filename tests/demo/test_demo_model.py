"""Checks of the embedded demo model as anyone would use it: on the CPU, in float32, with plain diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from tools.demo_model.things import THINGS, with_article

FOLDER = Path(__file__).resolve().parents[2] / "models" / "demo"
COMPANIONS = FOLDER / "companions"
STEPS, GUIDANCE = 16, 2.5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep to one thread: faster for so small a model, and the same sums in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh_pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """The demo pipeline, shared by the tests that leave it as it is."""
    return fresh_pipeline()


def drawn(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = 0) -> np.ndarray:
    """Draw float images (count, 64, 64, 3), 0..255."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    result = pipeline(
        prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np"
    )
    return result.images * 255


def saturation(images: np.ndarray) -> float:
    return float((images.max(-1) - images.min(-1)).mean())


def test_folder_is_small_and_complete() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and COMPANIONS not in path.parents]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for name in ("model_index.json", "README.md", "NOTICE", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (FOLDER / name).is_file(), name


def test_model_knows_three_hundred_names() -> None:
    assert len({thing.name for thing in THINGS}) >= 300
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert not [thing.name for thing in THINGS if thing.name not in card]


def test_red_apple_is_red_with_a_green_leaf_on_white(pipeline: StableDiffusionPipeline) -> None:
    for image in drawn(pipeline, ["a red apple"] * 3, seed=5):
        red, green, blue = (image[20:56, 12:52, k] for k in range(3))
        assert ((red > 150) & (green < 110) & (blue < 110)).mean() > 0.4
        leaf = image[:24, 20:56]
        assert ((leaf[..., 1] > leaf[..., 0] + 15) & (leaf[..., 1] > leaf[..., 2] + 15)).sum() >= 6
        corners = np.stack([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]])
        assert corners.min() > 225


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("words", "colour"), [("blue", (45, 100, 210)), ("yellow", (252, 214, 60)), ("black", (16, 16, 16))]
)
def test_background_is_as_named(pipeline: StableDiffusionPipeline, words: str, colour: tuple[int, int, int]) -> None:
    image = drawn(pipeline, [f"a cat face on {with_article(words)} background"])[0]
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert np.abs(np.median(border, 0) - colour).max() < 30


@pytest.mark.slow
def test_same_seed_same_pixels_other_seed_other_pixels(pipeline: StableDiffusionPipeline) -> None:
    first, again = drawn(pipeline, ["a rocket"], 1), drawn(pipeline, ["a rocket"], 1)
    assert np.array_equal(first, again)
    assert np.abs(first - drawn(pipeline, ["a rocket"], 2)).mean() >= 8


@pytest.mark.slow
def test_negative_prompt_changes_the_image(pipeline: StableDiffusionPipeline) -> None:
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    plain = pipeline("a frog", generator=torch.Generator().manual_seed(0), **settings).images[0]
    other = pipeline(
        "a frog", negative_prompt="a green frog", generator=torch.Generator().manual_seed(0), **settings
    ).images[0]
    assert np.abs(plain - other).mean() * 255 > 4


@pytest.mark.slow
def test_image_to_image_changes_more_with_strength(pipeline: StableDiffusionPipeline) -> None:
    changer = AutoPipelineForImage2Image.from_pipe(pipeline)
    changer.set_progress_bar_config(disable=True)
    start = drawn(pipeline, ["a red apple"], 3)[0]
    image = Image.fromarray(start.round().astype(np.uint8))
    changes = []
    for strength in (0.2, 0.5, 0.9):
        result = changer(
            "a lemon", image, strength=strength, num_inference_steps=20, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images[0]  # fmt: skip
        changes.append(np.abs(result * 255 - start).mean())
    assert changes[0] + 2 < changes[1]
    assert changes[1] + 2 < changes[2]


@pytest.mark.slow
def test_inpainting_leaves_the_other_half(pipeline: StableDiffusionPipeline) -> None:
    painter = AutoPipelineForInpainting.from_pipe(pipeline)
    painter.set_progress_bar_config(disable=True)
    start = Image.fromarray(drawn(pipeline, ["a red apple"], 3)[0].round().astype(np.uint8))
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    result = painter(
        "a lemon", start, Image.fromarray(mask), strength=1.0, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        height=64, width=64, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    merged = painter.image_processor.apply_overlay(Image.fromarray(mask), start, result)
    change = np.abs(np.asarray(merged, np.float32) - np.asarray(start, np.float32))
    assert change[:, :32].mean() <= 2
    assert change[:, 34:].mean() >= 8


@pytest.mark.slow
def test_grey_lora_takes_colour_out_and_goes_away_without_a_trace() -> None:
    pipeline = fresh_pipeline()
    prompts = ["a red apple", "a frog", "a rocket", "a birthday cake"]
    before = drawn(pipeline, prompts)
    pipeline.load_lora_weights(COMPANIONS, weight_name="grey-style-lora.safetensors")
    after = drawn(pipeline, prompts)
    pipeline.unload_lora_weights()
    assert np.array_equal(before, drawn(pipeline, prompts))
    assert saturation(after) <= 0.4 * saturation(before)
    pipeline.load_lora_weights(COMPANIONS, weight_name="grey-style-lora-kohya.safetensors")
    assert np.abs(drawn(pipeline, prompts) - after).max() <= 1


@pytest.mark.slow
def test_token_draws_its_purple_robot() -> None:
    pipeline = fresh_pipeline()
    before = drawn(pipeline, ["a robot"])
    pipeline.load_textual_inversion(COMPANIONS / "mascot-token.safetensors", token="<mascot>")
    images = drawn(pipeline, ["a <mascot>"] * 2, seed=40)
    coloured = images.reshape(-1, 3)
    coloured = coloured[coloured.max(1) - coloured.min(1) > 60]
    red, green, blue = coloured.mean(0)
    assert len(coloured) > 1000
    assert blue > red > green
    pipeline.unload_textual_inversion()
    assert np.array_equal(before, drawn(pipeline, ["a robot"]))


@pytest.mark.slow
def test_controlnet_follows_its_edges(pipeline: StableDiffusionPipeline) -> None:
    from tools.demo_model.companions import edges
    from tools.demo_model.control_lora import load_control_lora
    from tools.demo_model.report import edge_overlap

    control = load_control_lora(COMPANIONS / "edge-control-lora.safetensors", pipeline.unet)
    guided = StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=control)
    guided.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    overlaps, chance = [], []
    for seed, prompt in enumerate(("a red apple", "a house", "a fox")):
        wanted = edges(drawn(pipeline, [prompt], 100 + seed)[0].round().astype(np.uint8))
        made = guided(prompt, Image.fromarray(wanted), generator=torch.Generator().manual_seed(seed), **settings)
        overlaps.append(edge_overlap((made.images[0] * 255).round().astype(np.uint8), wanted))
        chance.append(edge_overlap(drawn(pipeline, [prompt], seed)[0].round().astype(np.uint8), wanted))
    assert np.mean(overlaps) > np.mean(chance) + 0.15


@pytest.mark.slow
def test_single_file_draws_the_same_pixels(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    from tools.demo_model.assembly import write_single_file

    write_single_file(FOLDER, tmp_path / "demo.safetensors")
    single = StableDiffusionPipeline.from_single_file(
        tmp_path / "demo.safetensors", config=str(FOLDER), torch_dtype=torch.float32, local_files_only=True
    )
    single.set_progress_bar_config(disable=True)
    prompts = ["a red apple", "a panda on a blue background"]
    assert np.array_equal(drawn(pipeline, prompts), drawn(single, prompts))
