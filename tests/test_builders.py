"""The tiny pipelines: they load, run, listen to prompt and seed, take LoRAs, and read back from a single file."""

import numpy
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image

from tests import builders, single_files

BUILDERS = {
    "StableDiffusionPipeline": builders.tiny_sd1,
    "StableDiffusionXLPipeline": builders.tiny_sdxl,
    "StableDiffusionInstructPix2PixPipeline": builders.tiny_pix2pix,
    "StableDiffusion3Pipeline": builders.tiny_sd3,
    "FluxPipeline": builders.tiny_flux,
}
SEEN_CHANGE = 1.0
"""A mean difference, of 255, that tells two images apart beyond rounding."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in BUILDERS.items()}


def load(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline, prompt="a red cat", seed=0, image_seed=0):
    options = {"width": 64, "height": 64}
    if "Pix2Pix" in type(pipeline).__name__:
        noise = numpy.random.default_rng(image_seed).integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
        options = {"image": Image.fromarray(noise)}
    generator = torch.Generator().manual_seed(seed)
    result = pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np", **options)
    return 255 * numpy.asarray(result.images[0])


def change(one, other):
    return numpy.abs(one - other).mean()


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_tiny_pipeline_listens_to_prompt_and_seed(folders, name):
    pipeline = load(folders[name])
    assert type(pipeline).__name__ == name
    first = paint(pipeline)
    assert first.shape == (64, 64, 3)
    assert numpy.isfinite(first).all()
    assert first.std() > 20, "an image, not a grey square"
    assert numpy.array_equal(first, paint(pipeline))
    assert change(first, paint(pipeline, prompt="a blue dog")) > SEEN_CHANGE
    assert change(first, paint(pipeline, seed=1)) > SEEN_CHANGE
    if "Pix2Pix" in name:
        assert change(first, paint(pipeline, image_seed=1)) > SEEN_CHANGE
    assert sum(path.stat().st_size for path in folders[name].rglob("*") if path.is_file()) < 8_000_000


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_lora_changes_the_image_by_its_alpha_in_every_dialect(folders, name, tmp_path):
    plain = paint(load(folders[name]))
    images = {}
    for dialect in (
        ("diffusers", "kohya") if "unet" in {path.name for path in folders[name].iterdir()} else ("diffusers",)
    ):
        for alpha in (None, 1.0):
            path = builders.lora_for(folders[name], tmp_path / f"{dialect}.safetensors", dialect=dialect, alpha=alpha)
            pipeline = load(folders[name])
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
            images[dialect, alpha] = paint(pipeline)
        whole, quarter = (change(plain, images[dialect, alpha]) for alpha in (None, 1.0))
        assert whole > quarter > SEEN_CHANGE
    if ("kohya", None) in images:
        assert numpy.array_equal(images["kohya", None], images["diffusers", None])
        assert numpy.array_equal(images["kohya", 1.0], images["diffusers", 1.0])


def test_loras_of_two_seeds_differ_and_a_kohya_transformer_is_refused(folders, tmp_path):
    folder = folders["StableDiffusionPipeline"]
    one, two = (builders.lora_for(folder, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1))
    assert one.read_bytes() != two.read_bytes()
    with pytest.raises(ValueError, match="kohya"):
        builders.lora_for(folders["FluxPipeline"], tmp_path / "x.safetensors", dialect="kohya")


def test_a_single_file_gives_the_same_image(folders, tmp_path):
    folder = folders["StableDiffusionPipeline"]
    path = single_files.single_file(folder, tmp_path / "one.safetensors")
    single = StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    assert numpy.array_equal(paint(single), paint(load(folder)))


def test_a_builder_writes_the_same_bytes_and_leaves_the_random_state_alone(folders, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again = builders.tiny_sd1(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    for path in (path for path in again.rglob("*") if path.is_file()):
        first = folders["StableDiffusionPipeline"] / path.relative_to(again)
        assert path.read_bytes() == first.read_bytes(), path


def test_any_prompt_tokenizes_and_different_prompts_differ():
    clip, t5 = builders.clip_tokenizer(), builders.t5_tokenizer()
    prompts = ["a cat", "a dog", "кот", "猫", "\U0001f408", ""]
    ids = [tuple(clip(prompt).input_ids) for prompt in prompts]
    assert len(set(ids)) == len(prompts)
    assert all(0 <= token < 514 for row in ids for token in row)
    assert t5("a cat").input_ids != t5("a dog").input_ids
