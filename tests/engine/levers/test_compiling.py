"""Regional compilation: nothing that comes on later is ignored, and nothing is compiled in front of a job."""

import contextlib
import gc
import weakref

import diffusers
import pytest
import torch

from tests import builders
from worker.core.errors import JobCancelled
from worker.engine.levers.board import Board
from worker.engine.levers.compiling import compiling, stopping_between_blocks, without_compiling
from worker.engine.levers.row import Ground, Lever


class Compiler:
    """A backend of torch.compile that runs what it gets as it is, and counts it."""

    def __init__(self):
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*arguments):
            self.runs += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture
def pipe(tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(builders.tiny_flux(tmp_path / "flux"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    torch._dynamo.reset()


def draw(pipe, size=64):
    with torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(1)
        output = pipe("a", height=size, width=size, num_inference_steps=1, generator=generator, output_type="pt")
    return output.images


@contextlib.contextmanager
def hooked(pipe):
    """A hook on a layer inside of a repeated block, as a LoRA's."""
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    handle = layer.register_forward_hook(lambda module, inputs, output: output * 0.5)
    yield
    handle.remove()


@pytest.mark.slow
def test_a_lora_that_is_hooked_in_after_a_model_was_compiled_is_not_ignored(pipe):
    plain = draw(pipe)
    with hooked(pipe):
        wanted = draw(pipe)
    assert not torch.equal(plain, wanted)
    off = compiling(compiler := Compiler())(Ground(pipe))
    assert torch.equal(draw(pipe), plain)
    assert compiler.graphs > 0
    with hooked(pipe):
        assert torch.equal(draw(pipe), wanted)
        with without_compiling():
            assert torch.equal(draw(pipe), wanted)
    assert torch.equal(draw(pipe), plain)
    off()


def test_in_front_of_a_job_nothing_is_compiled_and_what_is_compiled_already_is_used(pipe):
    plain, small = draw(pipe), draw(pipe, 32)
    off = compiling(compiler := Compiler())(Ground(pipe))
    with without_compiling():
        assert torch.equal(draw(pipe), plain)
        assert compiler.graphs == 0
    draw(pipe)
    graphs, runs = compiler.graphs, compiler.runs
    assert graphs > 0
    with without_compiling():
        assert torch.equal(draw(pipe), plain)
        assert compiler.runs == 2 * runs
        assert torch.equal(draw(pipe, 32), small)
        with hooked(pipe):
            assert not torch.equal(draw(pipe), plain)
    off()
    compiling(compiler)(Ground(pipe))  # once more: what was compiled is there still
    assert torch.equal(draw(pipe), plain)
    assert compiler.graphs == graphs


def test_a_job_waits_for_one_block_at_most_and_not_for_all_that_is_to_be_compiled(pipe):
    plain = draw(pipe)
    arrived = []

    class Interrupted(Compiler):
        """A job comes while the first block is compiled."""

        def __call__(self, graph, inputs):
            arrived.append("a job")
            return super().__call__(graph, inputs)

    def check():
        if arrived:
            raise JobCancelled("a job came")

    ground = Ground(pipe)
    off = compiling(compiler := Interrupted())(ground)
    calls = [block._compiled_call_impl for block in pipe.transformer.transformer_blocks]
    with pytest.raises(JobCancelled), stopping_between_blocks(ground, check):
        draw(pipe)
    assert compiler.graphs == 1
    assert [block._compiled_call_impl for block in pipe.transformer.transformer_blocks] == calls
    arrived.clear()
    with stopping_between_blocks(ground, lambda: None):
        assert torch.equal(draw(pipe), plain)
    assert compiler.graphs > 1  # the first was not compiled for nothing
    off()


def test_an_evicted_model_that_was_compiled_leaves_the_memory(tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(builders.tiny_flux(tmp_path / "flux"), dtype=torch.float32)
    block = weakref.ref(pipe.transformer.transformer_blocks[0])
    lever = Lever("compile", "exact", "", lambda ground: True, compiling(Compiler()), scope="pipeline")
    Board().settle(Ground(pipe), [lever])
    del pipe
    gc.collect()
    assert block() is None
