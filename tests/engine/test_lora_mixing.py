"""LoRAs of single images: each row of a call has its own job's changes, and what cannot be mixed says so."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import loras
from tests.engine.lora_bench import adapter, host
from tests.engine.test_lora_algorithms import ALGORITHMS, NORM
from tests.engine.test_lora_merging import Net
from worker.engine.adapters.lora import LoraCache
from worker.engine.adapters.merging import MergeCache
from worker.engine.adapters.mixing import Mixture, Unmixable

IMAGES = loras.normal(3, 32, 6, 6, seed=3)


@pytest.fixture
def pipe():
    torch.manual_seed(5)
    net = Net().eval().requires_grad_(False)
    return SimpleNamespace(components={"transformer": net}, transformer=net)


def file_of(pipe, path, make=loras.lora, paths=("first", "second", "conv"), seed=0, weight=0.8):
    return adapter(loras.build(pipe, "transformer", paths, make, seed=seed), path, weight)


def mixing(pipe, sets, images, rows):
    """The rows with every image's own set, `images` of them in the call."""
    own = {str(index): chosen for index, chosen in enumerate(sets)}
    with_mixture = host(pipe, "tiny")
    with_mixture.mixture = Mixture.of(own)
    names = [str(index) for index in images]
    with LoraCache(4).applied(with_mixture, ()), with_mixture.mixture.calling(names, names):
        return pipe.transformer(rows)


def apart(pipe, chosen, rows):
    with LoraCache(4, MergeCache(4, 0)).applied(host(pipe, "tiny"), chosen):
        return pipe.transformer(rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_image_has_the_changes_of_its_own_job_whatever_the_algorithm(pipe, tmp_path, algorithm):
    make, where = ALGORITHMS[algorithm]
    paths = ("norm",) if where == NORM else ("conv", "point") if "conv" in where else ("first", "second")
    first, second = file_of(pipe, tmp_path / "a", make, paths), file_of(pipe, tmp_path / "b", seed=7)
    sets = ([first], [], [second, first])
    guided = torch.cat([IMAGES, IMAGES])
    output = mixing(pipe, sets, range(3), guided)
    for row in range(6):
        alone = apart(pipe, sets[row % 3], guided[row : row + 1])
        assert torch.allclose(output[row], alone[0], atol=2e-5 * float(alone.abs().max())), row
    assert (output[0] - pipe.transformer(IMAGES)[0]).abs().max() > 0.01
    assert torch.equal(pipe.transformer(guided)[:3], pipe.transformer(guided)[3:])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules())


def test_jobs_of_several_images_and_other_ranks_have_their_own_rows(pipe, tmp_path):
    small, large = file_of(pipe, tmp_path / "a", paths=("first",)), file_of(pipe, tmp_path / "b", seed=7, weight=-0.5)
    output = mixing(pipe, ([small], [small, large]), (0, 1, 1), IMAGES)
    for row, chosen in enumerate(([small], [small, large], [small, large])):
        alone = apart(pipe, chosen, IMAGES[row : row + 1])
        assert torch.allclose(output[row], alone[0], atol=2e-5 * float(alone.abs().max()))


@pytest.mark.parametrize(
    "rows",
    [
        IMAGES[:2],  # fewer than the images of the call
        torch.cat([IMAGES[:1], IMAGES[:1], IMAGES[1:2], IMAGES[1:2], IMAGES[2:], IMAGES[2:]]),  # another order
        torch.cat([IMAGES, IMAGES + 1]),  # something else beside the images
    ],
    ids=["fewer", "in pairs", "others"],
)
def test_rows_that_are_not_the_images_in_their_order_are_never_guessed_at(pipe, tmp_path, rows):
    chosen = [file_of(pipe, tmp_path / "a")]
    with pytest.raises(Unmixable):
        mixing(pipe, (chosen, [], chosen), range(3), rows)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules())


def test_a_layer_that_sees_other_rows_blames_the_loras_that_change_it(pipe, tmp_path):
    class Flat(nn.Module):
        """Gives all tokens of all images to one layer, in one row each."""

        def __init__(self, layer):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return self.inner(x.flatten(0, -2)).reshape(*x.shape[:-1], -1)

    innocent = file_of(pipe, tmp_path / "a", paths=("second",))
    pipe.transformer.first = Flat(pipe.transformer.first)
    guilty = file_of(pipe, tmp_path / "b", paths=("first.inner",))
    with pytest.raises(Unmixable) as refused:
        mixing(pipe, ([innocent], [guilty], []), range(3), IMAGES)
    assert (refused.value.lasting, refused.value.sets) == (True, (1,))
