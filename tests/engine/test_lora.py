"""LoRAs: they change what they should, are refused when they do not fit, and leave nothing behind."""

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.test_generation import draw
from tests.images import assert_differs, pixels
from worker.core.errors import IncompatibleAdapter, UnsupportedModel


@pytest.fixture
def lora(zoo):
    return f"file:{zoo}/models/lora.safetensors"


@pytest.mark.parametrize("name", ["lora", "kohya"])
async def test_a_lora_that_fits_changes_the_image_and_leaves_no_trace(worker, zoo, name):
    before = pixels(await draw(worker))
    answer = await draw(worker, loras=[{"model": f"file:{zoo}/models/{name}.safetensors", "weight": 1.0}])
    assert_differs(pixels(answer), before)
    report = answer["loras"][0]
    assert report["matched"] == report["total"] > 0
    assert len(report["sha256"]) == 64
    assert np.array_equal(pixels(await draw(worker)), before)


async def test_weight_zero_changes_nothing_and_weights_scale(worker, lora):
    plain = pixels(await draw(worker)).astype(int)
    zero = pixels(await draw(worker, loras=[{"model": lora, "weight": 0.0}])).astype(int)
    half = pixels(await draw(worker, loras=[{"model": lora, "weight": 0.5}])).astype(int)
    full = pixels(await draw(worker, loras=[{"model": lora}])).astype(int)
    assert np.array_equal(zero, plain)
    assert 0 < np.abs(half - plain).mean() < np.abs(full - plain).mean()


async def test_two_loras_are_both_applied(worker, zoo, lora):
    other = f"file:{zoo}/models/kohya.safetensors"
    both = await draw(worker, loras=[lora, {"model": other, "weight": 0.7}])
    assert [item["model"] for item in both["loras"]] == [lora, other]
    assert_differs(pixels(both), pixels(await draw(worker, loras=[lora])))
    assert_differs(pixels(both), pixels(await draw(worker, loras=[{"model": other, "weight": 0.7}])))


async def test_a_lora_that_matches_nothing_is_an_error(worker, zoo, tmp_path, lora):
    weights = load_file(zoo / "models/lora.safetensors")
    renamed = {name.replace("attn1", "attn9").replace("attn2", "attn8"): value for name, value in weights.items()}
    path = worker.settings.volume / "odd.safetensors"
    path.parent.mkdir(parents=True)
    save_file(renamed, path)
    before = pixels(await draw(worker))
    with pytest.raises(IncompatibleAdapter) as failure:
        await draw(worker, loras=[f"file:{path}"])
    assert "tiny" in failure.value.message
    assert np.array_equal(pixels(await draw(worker)), before)


async def test_an_sdxl_lora_on_sd1_names_both_before_anything_is_loaded(worker, tmp_path):
    import torch

    module = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"
    path = worker.settings.volume / "xl.safetensors"
    path.parent.mkdir(parents=True)
    weights = {f"{module}.lora_down.weight": torch.zeros(4, 2048), f"{module}.lora_up.weight": torch.zeros(640, 4)}
    save_file(weights, path)
    with pytest.raises(IncompatibleAdapter) as failure:
        await draw(worker, loras=[f"file:{path}"])
    assert "SDXL" in failure.value.message.replace("Stable Diffusion XL", "SDXL")
    assert "Stable Diffusion 1" in failure.value.message
    assert worker.engine.resident_models == []


async def test_a_second_lora_that_fails_leaves_the_first_off(worker, zoo, lora):
    before = pixels(await draw(worker))
    with pytest.raises((IncompatibleAdapter, UnsupportedModel)):
        await draw(worker, loras=[lora, f"file:{zoo}/models/sd1.safetensors"])
    assert np.array_equal(pixels(await draw(worker)), before)


async def test_a_lora_on_image_to_image_is_taken_off_text_to_image_too(worker, lora):
    from tests.images import encoded, gradient

    before = pixels(await draw(worker))
    await draw(worker, image=encoded(gradient(64, 64)), strength=0.5, loras=[lora])
    assert np.array_equal(pixels(await draw(worker)), before)
