"""Adapters over weights in fewer bits: these stay as they are, and the file is for the whole model, too."""

import base64
import json
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from safetensors import safe_open
from torch import nn

from tests.images import assert_differs, pixels
from tests.training.test_jobs import FEW, PROMPT, ask, sent
from worker.core.device import LoadPlan
from worker.core.errors import ParameterOutOfRange, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.engine.precision import reduce_weights
from worker.service.introspection.device import DeviceIntrospection
from worker.training.checkpoint import Checkpoint
from worker.training.dataset import read_dataset
from worker.training.frozen import open_gradients
from worker.training.lessons import Lessons
from worker.training.trainer import Trainer

FORMS = {"fp8": "casting", "int8": "gguf", "4bit": "gguf"}
BOTH = [("flux", "4bit"), *(pytest.param(*each, marks=pytest.mark.slow) for each in [
    ("sd1", "fp8"), ("sd1", "4bit"), ("flux", "fp8"), ("sd1", "int8"), ("flux", "int8"),
])]  # fmt: skip


def reduced(pipe, precision):
    plan = LoadPlan(Path(), "", "float32", "cpu", "none", 0, 0, precision=precision, quantizer=FORMS[precision])
    assert reduce_weights(pipe, plan)
    return pipe


@pytest.fixture
def over(tiny, images, tmp_path):
    """A function that makes a trainer of a model whose weights are in a precision."""

    def make(family, precision, checkpoint=None, **options):
        settings = {"rank": 4, "learning_rate": 0.02, "resolution": 64, "decay": "constant", "warmup_steps": 0}
        pipe = tiny(family) if precision is None else reduced(tiny(family), precision)
        made = Trainer(pipe, TrainingOptions(**settings | options), 64, 16)
        examples = read_dataset(images).examples[:2]
        lessons = Lessons(tmp_path / "lessons", f"{family} {precision}")
        made.prepare(examples, examples, lessons, lambda done, total: None)
        made.begin(checkpoint)
        return made

    return make


def held_bytes(module):
    """The bytes of every weight that is not an adapter's, by its name in the model."""
    aside = [(f"{name} held", each.held[0]) for name, each in module.named_modules() if hasattr(each, "held")]
    assert {value.dtype.itemsize for _, value in aside} == {1}
    found = {}
    for name, value in (*module.named_parameters(), *module.named_buffers(), *aside):
        if "trained" not in name:
            data = value.as_tensor() if hasattr(value, "as_tensor") else value
            found[name] = data.detach().contiguous().view(torch.uint8).clone()
    return found


@pytest.mark.parametrize(("family", "precision"), BOTH)
def test_the_loss_falls_the_weights_stay_and_going_on_ends_in_the_same_bits(over, tmp_path, family, precision):
    made = over(family, precision, batch_size=2, targets="all")
    whole = over(family, None, batch_size=2, targets="all")
    begun, plain = made.learner.weights(), whole.learner.weights()
    assert all(torch.equal(begun[key], value) for key, value in plain.items()), "it begins as that of whole weights"
    before, first = held_bytes(made.denoiser), made.held_out_loss()
    for step in range(6):
        if step == 3:
            made.checkpoint(losses=[], held_out=[]).write(tmp_path / "checkpoints")
        made.step()
    assert made.held_out_loss() < 0.97 * first
    after = held_bytes(made.denoiser)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {key for key, each in made.denoiser.named_parameters() if each.requires_grad} == {
        key.partition(".")[2] for key, _ in made.learner.learning
    }
    again = over(family, precision, Checkpoint.latest(tmp_path / "checkpoints"), batch_size=2, targets="all")
    for _ in range(3):
        again.step()
    ends = made.learner.weights()
    assert all(torch.equal(ends[key], value) for key, value in again.learner.weights().items())


@pytest.mark.parametrize("precision", FORMS)
def test_a_gradient_is_that_of_the_plain_weights_and_nothing_plain_is_kept(precision):
    torch.manual_seed(0)
    convolution = nn.Conv2d(32, 64, 3, stride=2, padding=1) if precision == "fp8" else nn.Identity()
    part = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), convolution)
    pipe = reduced(types.SimpleNamespace(components={"unet": part}), precision)
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    layers = [(part[1], (3, 32))] + ([(part[2], (1, 32, 9, 8))] if precision == "fp8" else [])
    with torch.no_grad():
        expected = [layer(torch.ones(shape)) for layer, shape in layers]
    assert open_gradients(pipe, torch.float32) == len(layers)
    for (layer, shape), was in zip(layers, expected, strict=True):
        sent_in = torch.ones(shape, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = layer(sent_in)
        assert torch.equal(out, was)
        (back,) = torch.autograd.grad(out.square().sum(), sent_in)
        (weight,) = layer.held
        weight = dequantize_gguf_tensor(weight) if precision != "fp8" else weight
        call = nn.functional.linear if weight.ndim == 2 else partial(nn.functional.conv2d, stride=2, padding=1)
        (plain,) = torch.autograd.grad(call(sent_in, weight.float(), layer.bias.float()).square().sum(), sent_in)
        assert torch.allclose(back, plain, atol=1e-5)
    assert not kept


class Shut(nn.Linear):
    """A layer of a package that has no gradients."""

    def forward(self, input):
        with torch.no_grad():
            return super().forward(input)


def test_a_kind_of_layer_that_passes_no_gradient_is_refused_by_name_before_the_first_step(tiny):
    pipe = tiny("sd1")
    layer = Shut(32, 32)
    layer.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    pipe.unet.extra = layer
    with pytest.raises(UnsupportedModel, match="Layers of Shut let no gradient pass") as failure:
        open_gradients(pipe, torch.float32)
    assert failure.value.field == "precision"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_other_products_learn_beside_packed_weights_too(over, method):
    made = over("sd1", "4bit", method=method)
    first = made.held_out_loss()
    for _ in range(8):
        made.step()
    assert made.held_out_loss() < first


async def test_samples_are_generated_in_the_precision_and_the_file_is_for_the_whole_model_too(trains, images, settings):
    worker = trains()
    job = FEW | {"data": sent(images), "name": "mine", "precision": "4bit", "samples": [PROMPT], "learning_rate": 0.1}
    answer = await ask(worker, job)
    assert answer["done"]
    fields = {"prompt": PROMPT, "seed": 0, "loras": ["mine"]}
    small, whole = await ask(worker, fields | {"precision": "4bit"}), await ask(worker, fields)
    for drawn in (small, whole):
        assert drawn["loras"][0]["matched"] == drawn["loras"][0]["total"] > 0
    sample = next((settings.volume / "trained/mine/samples").glob("step-000003-1.png")).read_bytes()
    seen = pixels({"image": base64.b64encode(sample).decode()})
    assert np.array_equal(seen, pixels(small))
    assert not np.array_equal(seen, pixels(whole))
    assert_differs(pixels(whole), pixels(await ask(worker, {"prompt": PROMPT, "seed": 0})))
    with safe_open(settings.volume / "loras/mine.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training.settings"])["precision"] == "4bit"


async def test_what_does_not_go_with_a_precision_is_refused_before_anything_is_loaded(trains, images):
    worker = trains()
    for fields, kind, words in (
        ({"precision": "4bit", "method": "dora"}, UnsupportedModel, "method dora reads whole weights"),
        ({"precision": "auto"}, ParameterOutOfRange, "precision must be"),
    ):
        with pytest.raises(kind, match=words):
            await ask(worker, FEW | {"data": sent(images), "name": "mine"} | fields)


async def test_a_plan_counts_the_weights_as_they_would_be_held(trains, images, monkeypatch):
    counted, plan_of = [], DeviceIntrospection.plan_of

    async def heard(self, model):
        report = await plan_of(self, model)
        counted.append(report.plan.weight_bytes)
        return report

    monkeypatch.setattr(DeviceIntrospection, "plan_of", heard)
    worker = trains()
    for fields in ({}, {"precision": "fp8"}, {"precision": "4bit"}):
        plan = await ask(worker, FEW | {"action": "train_plan", "data": sent(images), "name": "mine"} | fields)
        assert plan["fits"]
    assert counted[0] > counted[2]
    assert counted[0] > counted[1]
