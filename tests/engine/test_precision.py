"""Weights in fewer bits: smaller, near the whole model's image, and told; what cannot be had is refused."""

import asyncio
import gc
import types
import weakref
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

from tests.asking import perform
from tests.engine.levers.test_switching import FAMILIES
from tests.images import assert_differs, pixels
from tests.zoo import RECIPES, plain
from worker.app.build import build_worker
from worker.core.device import LoadPlan
from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.precision import form_name, is_reducible
from worker.core.turn import StopSignal
from worker.engine import precision as engine_precision
from worker.engine.precision import _q4_1, _q8_0, reduce_weights
from worker.engine.reduced_weights import save_reduced
from worker.service.local.weights import identity
from worker.store.reduced import ReducedWeights

# The least PSNR against the whole model's image, of tiny networks with random weights, and what holds the weights.
NEAR = {"fp8": ("casting", 25), "int8": ("gguf", 35), "8bit": ("gguf", 35), "4bit": ("gguf", 16)}


def quiet(progress):
    pass


async def draw(worker, job, **fields):
    return await perform(worker, {"prompt": "a red apple", "seed": 7, **fields}, job, quiet)


def psnr(image, other):
    error = np.mean((np.asarray(image, float) - np.asarray(other, float)) ** 2)
    return 10 * np.log10(255**2 / error) if error else np.inf


def bytes_held(resident):
    parts = [part for part in resident.pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum({id(tensor): tensor.nbytes for part in parts for tensor in part.parameters()}.values())


@pytest.mark.parametrize(("pack", "kind", "levels"), [(_q8_0, "Q8_0", 255), (_q4_1, "Q4_1", 15)])
def test_blocks_are_those_that_ggufs_own_package_writes(pack, kind, levels):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    quant = gguf.GGMLQuantizationType[kind]
    packed = pack(weight.reshape(-1, 32)).reshape(64, -1)
    theirs = gguf.quants.quantize(weight.numpy(), quant)
    assert packed.shape == theirs.shape
    assert np.mean(packed.numpy() != theirs) < 0.01  # a tie may be rounded to the other side
    unpacked = dequantize_gguf_tensor(GGUFParameter(packed, quant_type=quant)).reshape(64, 96).float()
    assert (unpacked - weight).abs().max() <= (weight.max() - weight.min()) / levels
    assert not unpacked[3].any()


class Pooling(torch.nn.Module):
    """Calls one layer and reads the weight of another, as HunyuanDiT's pooling and T5 do."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.called, self.taken = (torch.nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        return torch.nn.functional.linear(self.called(self.conv_in(x)), self.taken.weight)


def test_a_layer_whose_weight_another_reads_stays_as_it_is():
    plan = LoadPlan(Path(), "", "float32", "cpu", "none", 0, 0, precision="fp8", quantizer="casting")
    pooling = torch.nn.Sequential(Pooling())
    assert reduce_weights(types.SimpleNamespace(components={"unet": pooling}), plan) == 1
    assert [name for name, each in pooling.named_parameters() if each.dtype == torch.float8_e4m3fn] == [
        "0.called.weight",
        "0.called.bias",
    ]
    assert pooling(torch.ones(1, 32)).isfinite().all()


def test_a_packed_layer_is_called_as_the_plain_one():
    plan = LoadPlan(Path(), "", "float32", "cpu", "none", 0, 0, precision="int8", quantizer="gguf")
    unet = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    x = torch.ones(1, 32)
    expected = unet[1](input=x)
    assert reduce_weights(types.SimpleNamespace(components={"unet": unet}), plan) == 1
    assert torch.allclose(unet[1](input=x), expected, atol=0.02)


@pytest.fixture
def roomy(settings):
    """A worker that keeps three models at once."""
    return build_worker(settings.model_copy(update={"max_resident_models": 3}))


async def test_each_precision_is_a_resident_of_its_own_smaller_near_and_told(roomy):
    whole = await draw(roomy, "whole", model="tiny-flux")
    assert "precision" not in whole
    for precision, (quantizer, least) in NEAR.items():
        if precision == "8bit":  # as int8 here, where nothing else is installed
            continue
        answer = await draw(roomy, precision, model="tiny-flux", precision=precision)
        assert (answer["precision"], answer["quantizer"]) == (precision, quantizer)
        assert answer["reproduce"]["input"]["precision"] == precision
        assert least < psnr(pixels(answer), pixels(whole)) < 100
        first, *_, last = roomy.engine._engine._pool.residents
        assert last.plan.precision == precision
        # The plan's arithmetic is of the weights that are there, but for what fp8 does to biases.
        assert bytes_held(last) == pytest.approx(last.plan.weight_bytes, rel=0.02)
        assert last.plan.weight_bytes < first.plan.weight_bytes
        assert first.plan.weight_bytes == pytest.approx(bytes_held(first), rel=0.02)
    assert np.array_equal(pixels(await draw(roomy, "whole again", model="tiny-flux")), pixels(whole))
    plan = await perform(roomy, {"action": "plan", "model": "tiny-flux"}, "plan", quiet)
    assert plan["precision"] == "fp32"
    assert {*plan["precisions"]} == {"bf16", "fp16", "fp32", *NEAR}


async def test_a_dtype_that_is_asked_for_is_computed_in_also_on_a_cpu(roomy):
    whole = await draw(roomy, "a")
    half = await draw(roomy, "b", precision="bf16")
    assert (half["precision"], "quantizer" in half) == ("bf16", False)
    assert roomy.engine._engine._pool.residents[-1].pipe.unet.dtype == torch.bfloat16
    assert 25 < psnr(pixels(half), pixels(whole)) < 100
    auto = await draw(roomy, "c", precision="auto")
    assert (auto["precision"], auto["reproduce"]["input"]["precision"]) == ("fp32", "fp32")
    assert np.array_equal(pixels(auto), pixels(whole))


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("precision", ["fp8", "int8"])
async def test_loras_act_on_weights_in_fewer_bits_as_on_whole_ones(roomy, zoo, precision):
    lora = {"loras": [f"file:{zoo}/models/lora.safetensors"]}
    whole = pixels(await draw(roomy, "whole", **lora))
    bare = pixels(await draw(roomy, "bare", precision=precision))
    with_lora = pixels(await draw(roomy, "lora", precision=precision, **lora))
    assert_differs(with_lora, bare)
    assert psnr(with_lora, whole) > psnr(bare, whole) + 6
    assert np.array_equal(pixels(await draw(roomy, "bare again", precision=precision)), bare)


async def test_jobs_of_two_precisions_share_no_call(settings):
    worker = build_worker(settings.model_copy(update={"batch_size": 4, "batch_timeout_ms": 300}))
    jobs = [draw(worker, f"job {index}", precision=name) for index, name in enumerate(["int8", "fp32", "int8"])]
    answers = await asyncio.gather(*jobs)
    assert [answer["precision"] for answer in answers] == ["int8", "fp32", "int8"]
    assert answers[1]["timings"]["batch_size"] == 1


async def test_the_operators_precision_holds_for_all_and_requests_may_be_kept_from_theirs(settings):
    changes = {"precision_mode": "int8", "allow_precision": False}
    worker = build_worker(settings.model_copy(update=changes))
    assert (await draw(worker, "a"))["precision"] == "int8"
    with pytest.raises(InvalidRequest, match="ALLOW_PRECISION") as refused:
        await draw(worker, "b", precision="fp32")
    assert refused.value.field == "precision"
    schema = await perform(worker, {"action": "schema", "model": "tiny"}, "s", quiet)
    assert "precision" not in schema["properties"]


@pytest.mark.parametrize("precision", ["fp8", "int8"])
async def test_weights_that_were_made_smaller_once_are_read_again_bit_by_bit_and_only_whole(settings, precision):
    first = build_worker(settings)
    image = pixels(await draw(first, "a", model="tiny-flux", precision=precision))
    resident = first.engine._engine._pool.residents[0]
    model = first.resolver.known(first.resolver.resolve("tiny-flux").model_copy(update={"precision": precision}))
    files = first.provisioner.model_files(model, quiet, StopSignal())
    form = form_name(precision, "float32", NEAR[precision][0])
    kept = ReducedWeights(settings.volume / "reduced")
    entry = kept.publish(identity(model.spec, files), form, lambda folder: save_reduced(resident.pipe, folder), {})
    again = build_worker(settings)
    assert np.array_equal(pixels(await draw(again, "b", model="tiny-flux", precision=precision)), image)
    assert again.engine._engine._pool.residents[0].plan.reduced == entry
    assert bytes_held(again.engine._engine._pool.residents[0]) == bytes_held(resident)
    weights = entry / "transformer" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    other = build_worker(settings)
    assert np.array_equal(pixels(await draw(other, "c", model="tiny-flux", precision=precision)), image)
    assert other.engine._engine._pool.residents[0].plan.reduced is None


def test_a_layer_beyond_fp8_stays_whole_and_a_model_without_any_is_refused():
    huge, small = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    huge.weight.data[0, 0] = 1e6
    unet = torch.nn.Sequential(torch.nn.LayerNorm(32), huge, small)
    plan = of_a_plan("casting", "fp8")
    assert reduce_weights(types.SimpleNamespace(components={"unet": unet}), plan) == 1
    assert (huge.weight.dtype, small.weight.dtype) == (torch.float32, torch.float8_e4m3fn)
    assert torch.isfinite(unet(torch.ones(1, 32))).all()
    with pytest.raises(UnsupportedModel, match="precision fp8: none of the layers"):
        reduce_weights(types.SimpleNamespace(components={"vae": small, "scheduler": None}), plan)


@pytest.mark.parametrize("precision", ["fp8", "int8", "4bit"])
def test_no_more_than_one_whole_layer_is_in_memory_beside_what_was_made_smaller(monkeypatch, precision):
    layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(8)]
    unet = torch.nn.Sequential(torch.nn.LayerNorm(64), *layers)
    whole = [weakref.ref(layer.weight.untyped_storage()) for layer in layers]
    del layers
    held, quantizer = [], NEAR[precision][0]
    reduce = engine_precision._QUANTIZERS[quantizer]

    def counted(layer, plan):
        gc.collect()
        held.append(sum(storage() is not None for storage in whole))
        return reduce(layer, plan)

    monkeypatch.setitem(engine_precision._QUANTIZERS, quantizer, counted)
    assert reduce_weights(types.SimpleNamespace(components={"unet": unet}), of_a_plan(quantizer, precision)) == 8
    gc.collect()
    assert held == [8, 7, 6, 5, 4, 3, 2, 1]
    assert not any(storage() is not None for storage in whole)


@pytest.mark.parametrize(
    ("component", "tensor", "shape", "reduced"),
    [
        ("transformer", "blocks.0.attn.to_q.weight", (64, 64), True),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight", (64, 64), True),
        ("unet", "down_blocks.0.resnets.0.conv1.weight", (8, 8, 3, 3), True),
        ("model", "double_blocks.0.img_attn.qkv.weight", (64, 64), True),
        ("transformer", "blocks.0.attn.to_q.weight", (64, 20), False),  # no whole blocks of 32
        ("transformer", "blocks.0.attn.to_q.bias", (64, 64), False),
        ("transformer", "blocks.0.norm1.linear.weight", (64, 64), False),
        ("text_encoder_2", "shared.weight", (64, 64), False),
        ("text_encoder_2", "encoder.block.0.layer.1.DenseReluDense.wo.weight", (64, 64), False),
        ("unet", "conv_in.weight", (8, 8, 3, 3), False),
        ("vae", "decoder.mid_block.attentions.0.to_q.weight", (64, 64), False),
        ("model", "first_stage_model.decoder.mid.attn_1.q.weight", (64, 64), False),
    ],
)
def test_what_is_made_smaller_is_told_by_name_and_shape(component, tensor, shape, reduced):
    assert is_reducible(component, tensor, shape) is reduced


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_generates_near_its_whole_image_in_each_precision(name):
    images = {precision: drawn(name, precision, "gguf") for precision in (None, "fp8", "int8", "4bit")}
    for precision in ("fp8", "int8", "4bit"):
        assert psnr(images[precision], images[None]) > NEAR[precision][1], precision


def of_a_plan(quantizer, precision):
    """A plan to hold the weights of a pipeline so, on a CPU."""
    plan = LoadPlan(Path("model"), "Pipeline", "float32", "cpu", "none", estimated_bytes=0, weight_bytes=0)
    return replace(plan, quantizer=quantizer, precision=precision)


def drawn(name, precision, quantizer):
    recipe = next(recipe for recipe in RECIPES if recipe.pipeline == name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = recipe.build().to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if precision is not None:
        by = "casting" if precision == "fp8" else quantizer
        assert reduce_weights(pipe, of_a_plan(by, precision))
    return plain.draw(recipe, pipe)
