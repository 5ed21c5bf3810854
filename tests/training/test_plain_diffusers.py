"""What was trained here, read by plain diffusers and peft: the same image as from serving, for every family."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file

from tests.asking import on_one_loop, perform
from tests.images import assert_differs, pixels
from tests.training.test_rehearsal import HABITS, MORE, as_served, recipe_of
from tests.zoo import plain
from tests.zoo.served import ServedZoo
from worker.core.training import TrainingOptions
from worker.training.dataset import read_dataset
from worker.training.lessons import Lessons
from worker.training.trainer import Trainer

RANK = 2
ANIMA = "AnimaModularPipeline"
# Where the family's default is another than the class's.
SAID = {
    "FluxImg2ImgPipeline": {"guidance_scale": 3.0},
    "ZImageImg2ImgPipeline": {"guidance_scale": 2.0},
    "Flux2KleinPipeline": {"guidance_scale": 2.0},
    ANIMA: {"guidance_scale": 20.0},  # so that a change is seen
}


def recipe(name):
    found = recipe_of(name)
    return replace(found, request={**found.request, **SAID.get(name, {})})


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """One worker that may load every tiny model, and what was trained on it."""
    return ServedZoo(tmp_path_factory.mktemp("shop"))


def repository(shop, name):
    folder = shop.root / name
    return folder if folder.exists() else plain.save(recipe(name), folder)


def trained(shop, images, name, method) -> Path:
    """The file of a short training of this family."""
    options = TrainingOptions(
        method=method, rank=RANK, learning_rate=0.5 if name == ANIMA else 0.05, resolution=64, warmup_steps=0
    )
    made = Trainer(as_served(plain.load(recipe(name), repository(shop, name))), options, 64, 16)
    lessons = Lessons(shop.root / "lessons", name)
    made.prepare(read_dataset(images).examples, (), lessons, lambda done, total: None)
    made.begin()
    for _ in range(4):
        made.step()
    return made.learner.write(shop.root / f"{name}-{method}.safetensors", {})


def served(shop, name, *loras):
    fields = recipe(name).fields() | {"model": f"file:{repository(shop, name)}", "seed": 0, "loras": list(loras)}
    return on_one_loop(perform(shop.worker, fields, f"{name}-{len(loras)}"))


def compare(shop, name, file, pipe):
    """Serving and plain diffusers generate alike with this file, and not as without it."""
    answer = served(shop, name, str(file))
    assert answer["loras"][0]["matched"] == answer["loras"][0]["total"] > 0
    direct = np.squeeze(plain.draw(recipe(name), pipe))
    direct = direct if direct.dtype == np.uint8 else (direct * 255).round()
    assert_differs(pixels(answer), pixels(served(shop, name)))
    assert np.abs(direct.astype(int) - pixels(answer)).max() <= 1


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "lora") for name in [*HABITS, *MORE]),
        ("StableDiffusionXLImg2ImgPipeline", "dora"),
        ("FluxImg2ImgPipeline", "dora"),
    ],
)
def test_diffusers_loads_the_file_and_generates_the_same(shop, images, name, method):
    file = trained(shop, images, name, method)
    pipe = plain.load(recipe(name), repository(shop, name))
    if name.startswith("Kolors"):  # whose class asks for a text encoder that it has not
        pipe.unet.load_lora_adapter(file, prefix="unet")
    else:
        pipe.load_lora_weights(file)
    compare(shop, name, file, pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*[*HABITS][4:], "AnimaModularPipeline"]
)  # the first four are those of test_trainer.py
def test_the_loss_falls_and_nothing_but_the_adapter_changes(shop, images, name):
    pipe = as_served(plain.load(recipe(name), repository(shop, name)))
    options = TrainingOptions(rank=4, learning_rate=0.01, resolution=64, warmup_steps=0, batch_size=2, targets="all")
    made, examples = Trainer(pipe, options, 64, 16), read_dataset(images).examples[:2]
    made.prepare(examples, examples, Lessons(shop.root / "lessons", name), lambda done, total: None)
    before = {key: value.clone() for key, value in made.denoiser.state_dict().items()}
    made.begin()
    first = made.held_out_loss()
    for _ in range(40):
        made.step()
    assert made.held_out_loss() < 0.95 * first
    after = {key.replace(".base_layer", ""): value for key, value in made.denoiser.state_dict().items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {key for key, each in made.denoiser.named_parameters() if each.requires_grad} == {
        key.partition(".")[2] for key, _ in made.learner.learning
    }


@pytest.mark.slow
@pytest.mark.parametrize(("method", "config"), [("loha", LoHaConfig), ("lokr", LoKrConfig)])
@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "ZImageImg2ImgPipeline"])
def test_peft_loads_what_diffusers_does_not_read(shop, images, name, method, config):
    file = trained(shop, images, name, method)
    pipe = plain.load(recipe(name), repository(shop, name))
    prefix = "unet" if hasattr(pipe, "unet") else "transformer"
    state = {key.removeprefix(f"{prefix}."): value for key, value in load_file(file).items() if "alpha" not in key}
    layers = sorted({key.rpartition(".")[0] for key in state})
    denoiser = getattr(pipe, prefix)
    inject_adapter_in_model(config(r=RANK, alpha=RANK, target_modules=layers), denoiser, "mine")
    result = set_peft_model_state_dict(denoiser, state, adapter_name="mine")
    assert not result.unexpected_keys
    compare(shop, name, file, pipe)
