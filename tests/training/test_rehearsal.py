"""Rehearsals: a pipeline shows how its denoiser is called, whatever its family does around it."""

import importlib
import pkgutil
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import tests.zoo.families as families
from tests.zoo.modular import own as modular
from worker.core.errors import UnsupportedModel
from worker.engine.modular import called_with_keywords, is_modular
from worker.training.lessons import grouped, joined, read_call, write_call
from worker.training.rehearsal import Habits, denoiser_of, habits_of, rehearse

IMAGE = PIL.Image.fromarray((np.random.RandomState(0).rand(64, 64, 3) * 255).astype("uint8"))
PLAIN, THOUSANDTHS = Habits(1.0, 0.0, 1.0, 1.0), Habits(0.001, 0.0, 1.0, 1.0)
# Z-Image is told how much of the way is done, predicts the other way round, and has no guidance at 0.
HABITS = {
    "StableDiffusionImg2ImgPipeline": PLAIN,
    "StableDiffusionXLImg2ImgPipeline": PLAIN,
    "StableDiffusion3Img2ImgPipeline": PLAIN,
    "FluxImg2ImgPipeline": THOUSANDTHS,
    "ChromaImg2ImgPipeline": THOUSANDTHS,
    "QwenImageImg2ImgPipeline": THOUSANDTHS,
    "ZImageImg2ImgPipeline": Habits(-0.001, 1.0, -1.0, 0.0),
    "KolorsImg2ImgPipeline": PLAIN,
    # These start from text alone.
    "Flux2KleinPipeline": Habits(0.001, 0.0, 1.0, 1.0, from_text=True),
    "Krea2Pipeline": Habits(0.001, 0.0, 1.0, 0.0, from_text=True),
}
MORE = {
    "AnimaModularPipeline": THOUSANDTHS,
    "Flux2Pipeline": Habits(0.001, 0.0, 1.0, 1.0, from_text=True),
    "Lumina2Pipeline": Habits(-0.001, 1.0, -1.0, 1.0, from_text=True),
    "AuraFlowPipeline": Habits(0.001, 0.0, 1.0, 1.0, from_text=True),
}


def recipe_of(name):
    """The recipe of a tiny model of this class."""
    modules = [
        importlib.import_module(f"tests.zoo.families.{each.name}") for each in pkgutil.iter_modules(families.__path__)
    ]
    recipes = [recipe for module in (*modules, modular) for recipe in module.RECIPES]
    return next(recipe for recipe in recipes if recipe.pipeline == name)


def pipeline(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = recipe_of(name).build()
    return as_served(pipe)


def as_served(pipe):
    """The pipeline as serving has it."""
    pipe.set_progress_bar_config(disable=True)
    if is_modular(type(pipe)):
        pipe.__class__ = called_with_keywords(type(pipe))
    return pipe


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("name", [*HABITS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_habits_are_those_of_the_family_and_the_denoiser_takes_the_call_again(name, tmp_path):
    pipe = pipeline(name)
    scheduler = type(pipe.scheduler)
    habits = habits_of(pipe, IMAGE, 0)
    assert habits == (HABITS | MORE)[name]
    call = rehearse(pipe, habits, IMAGE, "a red apple", 0)
    assert type(pipe.scheduler) is scheduler, "it is as it was"
    other = rehearse(pipe, habits, IMAGE, "something else", 0)
    assert torch.equal(call.clean, other.clean), "latents are the image's"
    write_call(tmp_path / "call.safetensors", call)
    read = read_call(tmp_path / "call.safetensors", torch.device("cpu"))
    with torch.no_grad():
        output = denoiser_of(pipe)[1](**read.arguments)
    assert output is not None
    (both, *rest) = grouped([read, read])
    assert not rest or len(joined(both).clean) == 1, "two alike are one call, but for denoisers that take lists"


def test_clean_latents_are_what_the_vae_encodes(tiny):
    pipe = tiny("sd1")
    call = rehearse(pipe, PLAIN, IMAGE, "a red apple", 3)
    pixels = pipe.image_processor.preprocess(IMAGE)
    encoded = pipe.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
    assert torch.allclose(call.clean, encoded * pipe.vae.config.scaling_factor, atol=1e-5)


@pytest.mark.parametrize("name", ["QwenImageImg2ImgPipeline", "FluxImg2ImgPipeline"])
def test_the_way_back_from_the_vae_ends_where_an_image_to_image_class_begins(name, monkeypatch):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    from_image, from_text = pipeline(name), pipeline(name.replace("Img2Img", ""))
    from_text.vae = from_image.vae
    clean = [
        rehearse(pipe, habits_of(pipe, IMAGE, 0), IMAGE, "a red apple", 0).clean for pipe in (from_image, from_text)
    ]
    assert torch.allclose(*clean, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "KandinskyImg2ImgCombinedPipeline",
        "AmusedImg2ImgPipeline",
        "SanaSprintImg2ImgPipeline",
        "CycleDiffusionPipeline",
    ],
)
def test_a_pipeline_with_ways_of_its_own_is_refused_by_name(name):
    with pytest.raises(UnsupportedModel, match=name):
        habits_of(pipeline(name), IMAGE, 0)


def test_a_pipeline_without_a_denoiser_is_refused():
    with pytest.raises(UnsupportedModel, match="no denoisers"):
        denoiser_of(SimpleNamespace(components={"vae": object()}))
