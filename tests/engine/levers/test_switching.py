"""Every lever leaves a pipeline as it found it, in any order, whatever class it is."""

import contextlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.levers.test_compiling import Compiler
from tests.zoo import RECIPES, plain
from worker.engine.levers import caches, compiling, layout
from worker.engine.levers.board import Board
from worker.engine.levers.row import Ground, compatible
from worker.engine.levers.table import LEVERS

FAMILIES = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    *("ChromaPipeline", "QwenImagePipeline", "ZImagePipeline", "SanaPipeline", "PixArtSigmaPipeline"),
    *("AuraFlowPipeline", "Flux2Pipeline", "Lumina2Pipeline"),
)
# Where each lever can be put on without its device: what is left of the table's own conditions.
FITS = {
    "tf32": lambda ground: True,
    "vae-channels-last": lambda ground: True,
    "channels-last": layout.has_convolutions,
    "fused-qkv": layout.fuses,
    "cudnn-attention": lambda ground: True,
    "compile": compiling.has_repeated_blocks,
    "taylorseer": caches.keeps_features,
}
KERNELS = {"flash-attention-3", "sage-attention"}  # see test_attention
PACKAGES = {"cache-dit"}


class Model:
    """A tiny pipeline, its plain image, and the levers that fit it."""

    def __init__(self, name, compiler):
        self.recipe = next(recipe for recipe in RECIPES if recipe.pipeline == name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.recipe.build()
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe.to(torch.float32)
        self.ground = Ground(self.pipe)
        rows = [with_backend(row, compiler) for row in LEVERS if row.name in FITS and FITS[row.name](self.ground)]
        self.levers = [row for row in rows if can_be_on(row, self.ground)]
        self.image = plain.draw(self.recipe, self.pipe)
        self.modules = self.state()  # after a call: transformers puts hooks of its own on in the first one

    def state(self):
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        modules = [f"{name} {type(module).__name__}" for part in parts for name, module in part.named_modules()]
        hooks = sum(len(module._forward_hooks) for part in parts for module in part.modules())
        strides = [(name, item.stride(), item.dtype) for part in parts for name, item in part.named_parameters()]
        return modules, hooks, strides, torch.get_float32_matmul_precision()

    def draw(self):
        return plain.draw(self.recipe, self.pipe)


def with_backend(row, compiler):
    return replace(row, on=compiling.compiling(compiler)) if row.name == "compile" else row


def can_be_on(row, ground):
    """False for a class that diffusers refuses a lever for, as it refuses to fuse some: its trial shows that."""
    with contextlib.suppress(ValueError, NotImplementedError):
        row.on(ground)()
        return True
    return False


@pytest.fixture
def compiler():
    yield Compiler()
    torch._dynamo.reset()


def test_every_row_of_the_table_is_switched_here_or_by_a_test_of_its_own():
    assert {row.name for row in LEVERS} == FITS.keys() | KERNELS | PACKAGES


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_each_lever_alone_leaves_the_pipeline_as_it_found_it(name, compiler):
    model = Model(name, compiler)
    names = [lever.name for lever in model.levers]
    assert {"tf32", "cudnn-attention", "vae-channels-last"} < {*names}
    for lever in model.levers:
        off = lever.on(model.ground)
        if lever.name != "compile":
            model.draw()
        off()
        assert model.state() == model.modules, lever.name
        assert np.array_equal(model.draw(), model.image), lever.name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_levers_in_random_order_between_sixty_jobs_leave_the_plain_images_of_twelve_families_bit_equal(compiler):
    rng, board = random.Random(17), Board()
    models = [Model(name, compiler) for name in FAMILIES]
    jobs = [model for model in models for _ in range(5)]
    rng.shuffle(jobs)
    used = set()
    for model in jobs:
        chosen = compatible([lever for lever in model.levers if rng.random() < 0.5])  # in the table's order
        board.settle(model.ground, chosen)
        compiles = contextlib.nullcontext() if rng.random() < 0.5 else compiling.without_compiling()
        with board.called(model.ground, chosen), compiles:
            model.draw()
        used |= {lever.name for lever in chosen}
        board.settle(model.ground, ())
        assert np.array_equal(model.draw(), model.image), (model.recipe.pipeline, [lever.name for lever in chosen])
    assert used == FITS.keys()
    for model in models:
        assert model.state() == model.modules, model.recipe.pipeline
