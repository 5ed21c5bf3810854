"""Weights held by torchao and bitsandbytes, which `make test-precision` installs: near the whole image, with LoRAs."""

import types

import numpy as np
import pytest
import torch

from tests.asking import perform
from tests.engine.levers.test_switching import FAMILIES
from tests.engine.test_precision import drawn, of_a_plan, psnr
from tests.images import assert_differs, pixels
from worker.app.build import build_worker
from worker.engine.precision import reduce_weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def torchao():
    return pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_generates_near_its_whole_image_by_torchao(torchao, name):
    assert psnr(drawn(name, "int8", "torchao"), drawn(name, None, "torchao")) > 33


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_generates_near_its_whole_image_by_bitsandbytes(bitsandbytes, name):
    assert psnr(drawn(name, "8bit", "bitsandbytes"), drawn(name, None, "bitsandbytes")) > 30


def test_nf4_is_near_the_whole_product(bitsandbytes):
    layer = torch.nn.Sequential(torch.nn.LayerNorm(128), torch.nn.Linear(128, 128))
    given = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    whole = layer(given)
    plan = of_a_plan("bitsandbytes", "4bit")
    assert reduce_weights(types.SimpleNamespace(components={"unet": layer}), plan) == 1
    assert 0 < (layer(given) - whole).abs().max() < whole.abs().max() / 5
    assert layer[1].weight.numel() == 128 * 128 // 2  # two numbers in a byte


async def test_a_job_with_a_lora_on_weights_that_torchao_holds(torchao, settings, zoo):
    worker = build_worker(settings.model_copy(update={"max_resident_models": 2}))

    async def draw(job, **fields):
        request = {"prompt": "a red apple", "seed": 7, **fields}
        return await perform(worker, request, job, lambda progress: None)

    lora = {"loras": [f"file:{zoo}/models/lora.safetensors"]}
    whole = pixels(await draw("whole", **lora))
    bare = await draw("bare", precision="int8")
    assert (bare["precision"], bare["quantizer"]) == ("int8", "torchao")
    with_lora = pixels(await draw("lora", precision="int8", **lora))
    assert_differs(with_lora, pixels(bare))
    assert psnr(with_lora, whole) > psnr(pixels(bare), whole) + 6
    assert np.array_equal(pixels(await draw("bare again", precision="int8")), pixels(bare))
